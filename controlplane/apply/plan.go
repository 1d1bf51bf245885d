package apply

import (
	"errors"
	"fmt"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// errNoRoom says that a map is too small for a service.
var errNoRoom = errors.New("no room")

func noRoom(what, option string, limit uint32) error {
	return fmt.Errorf("%w for another %s: all %d are in use; start the agent with a larger %s after `weir cleanup`",
		errNoRoom, what, limit, option)
}

// plan is a set of writes, in the order in which they are safe to be seen.
type plan struct {
	state *state

	backendIndices []uint32
	backendRecords []maps.Backend
	newBackends    []uint32 // those of them that are new: their counters start at zero
	tables         []maps.SlotRange
	tableSlots     [][]uint32
	indices        []uint32
	records        []maps.Service
	names          []maps.ServiceName
	newIDs         []uint32
	frontends      map[maps.FrontendKey]*service // to be written
	deleted        map[maps.FrontendKey]struct{}
}

func newPlan(s *state) *plan {
	return &plan{
		state:     s,
		frontends: make(map[maps.FrontendKey]*service),
		deleted:   make(map[maps.FrontendKey]struct{}),
	}
}

func frontendKeys(desired compile.Service) []maps.FrontendKey {
	keys := make([]maps.FrontendKey, 0, len(desired.Frontends))
	for _, frontend := range desired.Frontends {
		keys = append(keys, maps.FrontendKeyOf(frontend.Address, uint8(desired.ID.Protocol)))
	}
	return keys
}

// drop takes frontends out.
func (p *plan) drop(keys []maps.FrontendKey) {
	for _, key := range keys {
		delete(p.state.owners, key)
		p.deleted[key] = struct{}{}
	}
}

// remove takes a service out. One that is not there is as it should be.
func (p *plan) remove(id compile.ID) {
	current, ok := p.state.services[id]
	if !ok {
		return
	}
	for key := range current.frontends {
		p.release(current, key)
	}
	delete(p.state.services, id)
	p.state.retireRecord(current)
	p.state.retiring.ids = append(p.state.retiring.ids, current.record.Id)
}

// release takes a frontend from a service; another may have been given it already.
func (p *plan) release(from *service, key maps.FrontendKey) {
	delete(from.frontends, key)
	if p.state.owners[key] == from {
		delete(p.state.owners, key)
		delete(p.frontends, key)
		p.deleted[key] = struct{}{}
	}
}

// give makes a frontend lead to a service's record.
func (p *plan) give(to *service, key maps.FrontendKey) {
	if owner := p.state.owners[key]; owner != nil && owner != to {
		delete(owner.frontends, key)
	}
	p.state.owners[key] = to
	to.frontends[key] = struct{}{}
	p.frontends[key] = to
	delete(p.deleted, key)
}

// put makes the maps hold a service. An error leaves it as it was.
func (p *plan) put(desired compile.Service) error {
	current := p.state.services[desired.ID]
	if err := p.fits(desired, current); err != nil {
		return err
	}
	taken, err := p.take(desired)
	if err != nil {
		return err
	}
	if current != nil && taken.same(current) {
		p.undo(taken)
		p.keepBackends(desired, current)
		p.putFrontends(desired, current)
		return nil
	}
	next, err := p.newRecord(desired, current, taken)
	if err != nil {
		p.undo(taken)
		return err
	}
	if current != nil {
		for key := range current.frontends {
			p.moveFrontend(current, next, key)
		}
		p.state.retireRecord(current)
	}
	p.state.services[desired.ID] = next
	p.putFrontends(desired, next)
	return nil
}

// moveFrontend hands a frontend of the old record to the new one.
func (p *plan) moveFrontend(current, next *service, key maps.FrontendKey) {
	if p.state.owners[key] == current {
		p.give(next, key)
	}
}

// fits checks that the frontends have room.
func (p *plan) fits(desired compile.Service, current *service) error {
	more := 0
	for _, key := range frontendKeys(desired) {
		if _, known := p.state.owners[key]; !known {
			more++
		}
	}
	limit := p.state.frontendLimit
	// Those being deleted leave the map only after the new ones are in.
	if more > 0 && len(p.state.owners)+len(p.deleted)+more > int(limit) {
		return noRoom("frontend", "--max-frontends", limit)
	}
	return nil
}

// putFrontends gives a service the frontends it shall have, and takes the others from it.
func (p *plan) putFrontends(desired compile.Service, to *service) {
	wanted := make(map[maps.FrontendKey]struct{})
	for _, key := range frontendKeys(desired) {
		wanted[key] = struct{}{}
		if p.state.owners[key] != to {
			p.give(to, key)
		}
	}
	for key := range to.frontends {
		if _, keep := wanted[key]; !keep {
			p.release(to, key)
		}
	}
}

// taken is what a new record of a service would use.
type taken struct {
	inside, outside       []uint32 // the tables
	record                maps.Service
	insideSum, outsideSum uint64
	backends              []*backend
	fresh                 []*backend // those among them that are new
}

// same tells whether the maps hold it already.
func (t *taken) same(current *service) bool {
	record := current.record
	record.Id, record.Generation = 0, 0
	record.Inside.Base, record.Outside.Base = 0, 0
	return len(t.fresh) == 0 && t.record == record && t.insideSum == current.inside && t.outsideSum == current.outside
}

// take finds or makes the backends of a service and builds its tables.
func (p *plan) take(desired compile.Service) (*taken, error) {
	t := &taken{record: maps.Service{
		InsideAlgorithm:  desired.InsideAlgorithm,
		OutsideAlgorithm: desired.OutsideAlgorithm,
		AffinityTimeout:  uint32(desired.AffinityTimeout / time.Second),
	}}
	if desired.NoEndpoints {
		t.record.Flags |= maps.ServiceNoEndpoints
	}
	seen := make(map[backendKey]*backend, len(desired.Inside)+len(desired.Outside))
	inside, err := p.takeBackends(desired.ID.Protocol, desired.Inside, seen, t)
	if err == nil {
		t.inside = table(desired.InsideAlgorithm, desired.Inside, inside)
		var outside []uint32
		outside, err = p.takeBackends(desired.ID.Protocol, desired.Outside, seen, t)
		t.outside = table(desired.OutsideAlgorithm, desired.Outside, outside)
	}
	if err != nil {
		p.undo(t)
		return nil, err
	}
	t.record.Inside.Count, t.record.Outside.Count = uint32(len(t.inside)), uint32(len(t.outside))
	t.insideSum, t.outsideSum = tableHash(t.inside), tableHash(t.outside)
	return t, nil
}

// table lays out the selection table: backend indices, compact or as Maglev has it.
func table(algorithm maps.Algorithm, backends []compile.Backend, indices []uint32) []uint32 {
	if algorithm != maps.AlgorithmMaglev {
		return indices
	}
	candidates := make([]maps.Candidate, len(backends))
	for i, b := range backends {
		candidates[i] = maps.Candidate{Address: b.Address, Weight: 1}
	}
	positions := maps.Maglev(candidates)
	for i, position := range positions {
		positions[i] = indices[position]
	}
	return positions
}

func (p *plan) takeBackends(protocol compile.Protocol, wanted []compile.Backend,
	seen map[backendKey]*backend, t *taken,
) ([]uint32, error) {
	indices := make([]uint32, 0, len(wanted))
	for _, want := range wanted {
		key := backendKey{address: want.Address, protocol: protocol}
		b := seen[key]
		if b == nil {
			var err error
			if b, err = p.takeBackend(key, want, t); err != nil {
				return nil, err
			}
			seen[key] = b
			t.backends = append(t.backends, b)
		}
		indices = append(indices, b.index)
	}
	return indices, nil
}

func (p *plan) takeBackend(key backendKey, want compile.Backend, t *taken) (*backend, error) {
	if known := p.state.backends[key]; known != nil {
		return known, nil
	}
	index, ok := p.state.backendIndices.take()
	if !ok {
		return nil, noRoom("backend", "--max-backends", p.state.backendIndices.limit)
	}
	b := &backend{key: key, index: index, generation: p.state.nextGeneration(), flags: flagsOf(want)}
	p.state.backends[key] = b
	t.fresh = append(t.fresh, b)
	return b, nil
}

func flagsOf(b compile.Backend) uint32 {
	flags := uint32(0)
	if b.Local {
		flags |= maps.BackendLocal
	}
	if b.Terminating {
		flags |= maps.BackendTerminating
	}
	return flags
}

// undo gives back what was taken and not written.
func (p *plan) undo(t *taken) {
	for _, b := range t.fresh {
		delete(p.state.backends, b.key)
		p.state.backendIndices.put(b.index)
	}
	t.fresh = nil
}

// keepBackends writes flags that have changed. Address and generation stay, so a reader cannot be misled.
func (p *plan) keepBackends(desired compile.Service, current *service) {
	for _, list := range [][]compile.Backend{desired.Inside, desired.Outside} {
		for _, want := range list {
			b := p.state.backends[backendKey{address: want.Address, protocol: desired.ID.Protocol}]
			if b == nil || b.flags == flagsOf(want) {
				continue
			}
			b.flags = flagsOf(want)
			p.backendIndices = append(p.backendIndices, b.index)
			p.backendRecords = append(p.backendRecords, b.record())
		}
	}
}

// newRecord takes an index, an id and the ranges, and plans their writing.
func (p *plan) newRecord(desired compile.Service, current *service, t *taken) (*service, error) {
	index, ok := p.state.indices.take()
	if !ok {
		return nil, noRoom("service record", "--max-services", p.state.indices.limit)
	}
	id, err := p.idOf(current)
	if err != nil {
		p.state.indices.put(index)
		return nil, err
	}
	inside, err := p.state.arena.Alloc(uint32(len(t.inside)))
	if err == nil {
		var outside maps.SlotRange
		if outside, err = p.state.arena.Alloc(uint32(len(t.outside))); err != nil {
			p.state.arena.Free(inside)
		}
		t.record.Inside, t.record.Outside = inside, outside
	}
	if err != nil {
		p.state.indices.put(index)
		if current == nil {
			p.state.ids.put(id)
		}
		return nil, fmt.Errorf("%w: %w; start the agent with a larger --max-slots after `weir cleanup`", errNoRoom, err)
	}
	return p.planRecord(desired, current, t, index, id), nil
}

// idOf returns the id of the service, which it keeps over its records.
func (p *plan) idOf(current *service) (uint32, error) {
	if current != nil {
		return current.record.Id, nil
	}
	id, ok := p.state.ids.take()
	if !ok {
		return 0, noRoom("service", "--max-services", p.state.ids.limit)
	}
	return id, nil
}

func (p *plan) planRecord(desired compile.Service, current *service, t *taken, index, id uint32) *service {
	if current == nil {
		p.newIDs = append(p.newIDs, id)
	}
	t.record.Id, t.record.Generation = id, p.state.nextGeneration()
	for _, b := range t.fresh {
		p.backendIndices = append(p.backendIndices, b.index)
		p.backendRecords = append(p.backendRecords, b.record())
		p.newBackends = append(p.newBackends, b.index)
	}
	for _, b := range t.backends {
		b.references++
	}
	p.keepBackends(desired, current)
	p.tables = append(p.tables, t.record.Inside, t.record.Outside)
	p.tableSlots = append(p.tableSlots, t.inside, t.outside)
	name := maps.ServiceName{Id: id}
	copy(name.Name[:], desired.ID.String())
	p.indices = append(p.indices, index)
	p.records = append(p.records, t.record)
	p.names = append(p.names, name)
	return &service{
		id: desired.ID, index: index, record: t.record, inside: t.insideSum, outside: t.outsideSum,
		backends: t.backends, frontends: make(map[maps.FrontendKey]struct{}),
	}
}
