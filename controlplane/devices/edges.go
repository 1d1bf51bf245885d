package devices

import (
	"errors"

	weirmaps "github.com/weir-lb/weir/maps"
)

// errNoEdgeID says that every id of a pod edge is in use.
var errNoEdgeID = errors.New("65534 network namespaces have pod edges already: no id is left for another")

// edges gives each pod's network namespace an id. Flows are found by it, and outlive the pod: so ids go round, and one
// comes back only after all others were used.
type edges struct {
	last    uint16                   // given out last
	ids     map[int]uint16           // by namespace
	members map[int]map[int]struct{} // devices by namespace
	spaces  map[int]int              // namespace by device
	used    map[uint16]struct{}
}

func newEdges(last uint16) *edges {
	return &edges{
		last: last, ids: map[int]uint16{}, members: map[int]map[int]struct{}{}, spaces: map[int]int{}, used: map[uint16]struct{}{},
	}
}

// restore says that a device has had an id before: its namespace has it still.
func (e *edges) restore(device, namespace int, id uint16) {
	if _, taken := e.used[id]; taken || id == 0 {
		return
	}
	if _, known := e.ids[namespace]; !known {
		e.ids[namespace] = id
		e.used[id] = struct{}{}
	}
	e.add(device, namespace)
}

// join returns the id of the namespace that a device leads to.
func (e *edges) join(device, namespace int) (uint16, error) {
	if now, member := e.spaces[device]; member && now != namespace {
		e.leave(device)
	}
	if _, known := e.ids[namespace]; !known {
		id, err := e.next()
		if err != nil {
			return 0, err
		}
		e.ids[namespace] = id
	}
	e.add(device, namespace)
	return e.ids[namespace], nil
}

func (e *edges) add(device, namespace int) {
	if e.members[namespace] == nil {
		e.members[namespace] = map[int]struct{}{}
	}
	e.members[namespace][device] = struct{}{}
	e.spaces[device] = namespace
}

// next returns a free id, the longest unused.
func (e *edges) next() (uint16, error) {
	for range 1 << 16 {
		e.last++
		if _, taken := e.used[e.last]; !taken && e.last != 0 && e.last != weirmaps.EdgeIDForeign {
			e.used[e.last] = struct{}{}
			return e.last, nil
		}
	}
	return 0, errNoEdgeID
}

// leave says that a device is gone, or leads elsewhere. With the last device of a namespace its id is free: the kernel
// gives the namespace's own id to another one at once.
func (e *edges) leave(device int) {
	namespace, member := e.spaces[device]
	if !member {
		return
	}
	delete(e.spaces, device)
	delete(e.members[namespace], device)
	if len(e.members[namespace]) == 0 {
		delete(e.members, namespace)
		delete(e.used, e.ids[namespace])
		delete(e.ids, namespace)
	}
}
