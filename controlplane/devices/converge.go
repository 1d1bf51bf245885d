package devices

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/loader"
	weirmaps "github.com/weir-lb/weir/maps"
)

// converge makes maps and programs what they should be. Programs are looked at on devices that are touched, that are
// not what they were, and on those that failed before.
func (m *Manager) converge(touched []int) {
	m.mu.Lock()
	m.primary = m.said
	m.mu.Unlock()
	view := m.look()
	hadFailed := len(m.failed) > 0
	m.forgetGone()
	// One after another: to attach a tcx program the kernel waits for a grace period with its lock of all devices held
	// (tcx_link_prog_attach, kernel/bpf/tcx.c), so nothing is gained side by side.
	for _, d := range inOrder(m.state.devices) {
		m.note(d.index, m.serve(d, view, slices.Contains(touched, d.index)))
	}
	if m.primary != nil || !m.options.NodePorts.Primary {
		addresses := nodePortAddresses(m.state.devices, view.roles, m.options.NodePorts, m.primary)
		m.note(ofNode, m.records.setAddresses(addresses))
	}
	chosen := resolvable(m.state.devices, view.roles)
	m.hops.use(chosen, routersOn(m.state.devices, chosen), touched)
	m.scheduleRetry(hadFailed)
	m.publish(view)
}

// ofNode stands among devices for what concerns the node.
const ofNode = 0

// picture is what is derived from the devices as they are.
type picture struct {
	roles map[int]role
	lower map[int]bool // devices under VLANs
	ipv4  netip.Addr   // the node's first address
	ipv6  netip.Addr
}

func (m *Manager) look() picture {
	roles := classify(m.state.devices, m.options.Patterns)
	return picture{
		roles: roles,
		lower: hasVLANs(m.state.devices),
		ipv4:  primaryAddress(m.state.devices, roles, false),
		ipv6:  primaryAddress(m.state.devices, roles, true),
	}
}

// serve brings a device up to date. Its entry in the map is there before programs are, and until they are gone.
func (m *Manager) serve(d *device, view picture, touched bool) error {
	r := view.roles[d.index]
	if err := m.prepare(d, view); err != nil {
		return err
	}
	now := asAttached(d, view)
	if m.isDue(now, r, touched) {
		_, err := m.options.Attacher.Attach(now)
		if errors.Is(err, unix.ENODEV) {
			return nil // it is gone; the notification is on its way
		}
		if err != nil {
			return err
		}
	}
	m.attached[d.index] = now
	if r.recorded {
		return nil
	}
	return m.records.deleteDevice(uint32(d.index))
}

// prepare brings the entry of a device in the map up to date.
func (m *Manager) prepare(d *device, view picture) error {
	record, err := m.record(d, view)
	if err != nil || !view.roles[d.index].recorded {
		return err
	}
	return m.records.putDevice(d.index, record)
}

// asAttached is what the attacher is told of a device.
func asAttached(d *device, view picture) loader.Device {
	told := loader.Device{
		Index: d.index, Name: d.name, Kind: d.kind, Up: d.up, Ethernet: d.header() == headerEthernet,
		Parent: view.lower[d.index], MTU: d.mtu,
	}
	if r := view.roles[d.index]; r.attached {
		told.Edge = r.edge
	}
	return told
}

// isDue tells whether the attacher has to look at a device.
func (m *Manager) isDue(now loader.Device, r role, touched bool) bool {
	if m.failed[now.Index] != nil {
		return true
	}
	last, known := m.attached[now.Index]
	switch {
	case !known:
		return r.attached || m.options.Attacher.Known(now.Index)
	case !r.attached:
		return last.Edge != weirmaps.EdgeNone
	default:
		return touched || last != now
	}
}

// record is what the map shall hold of a device.
func (m *Manager) record(d *device, view picture) (weirmaps.Device, error) {
	r := view.roles[d.index]
	record := weirmaps.Device{Edge: r.edge, Mac: d.mac, Mtu: uint32(d.mtu)}
	if d.header() != headerEthernet {
		record.Flags |= weirmaps.DeviceNoEthernet
	}
	if r.toPods {
		record.Flags |= weirmaps.DeviceToPods
	}
	bridge := ""
	if master := m.state.devices[d.master]; master != nil && master.bridges() {
		record.Master, record.MasterMac = uint32(master.index), master.mac
		bridge = master.name
	}
	if r.edge == weirmaps.EdgeNode && m.options.Inside != nil && m.options.Inside(d.name, bridge) {
		record.Flags |= weirmaps.DeviceInside
	}
	if addr := source(d, m.state.devices, view.ipv4, false); addr.IsValid() {
		record.Ipv4 = weirmaps.AddressOf(addr)
	}
	if addr := source(d, m.state.devices, view.ipv6, true); addr.IsValid() {
		record.Ipv6 = weirmaps.AddressOf(addr)
	}
	if router := d.router(false); router.IsValid() {
		record.RouterIpv4 = weirmaps.AddressOf(router)
	}
	if router := d.router(true); router.IsValid() {
		record.RouterIpv6 = weirmaps.AddressOf(router)
	}
	if r.edge != weirmaps.EdgePod {
		m.state.edges.leave(d.index)
		return record, nil
	}
	id, err := m.state.edges.join(d.index, d.namespace)
	if err != nil {
		return record, err
	}
	record.EdgeId = id
	return record, m.records.keepEdgeID(m.state.edges.last)
}

// forgetGone takes programs and entries away from devices that are no more.
func (m *Manager) forgetGone() {
	for index := range m.attached {
		if m.state.devices[index] == nil {
			m.note(index, m.options.Attacher.Detach(index))
			delete(m.attached, index)
		}
	}
	for index := range m.records.devices {
		if m.state.devices[int(index)] == nil {
			m.note(int(index), m.records.deleteDevice(index))
		}
	}
	for index := range m.failed {
		if m.state.devices[index] == nil && index != ofNode {
			delete(m.failed, index)
		}
	}
}

// note remembers that something failed, or no longer does.
func (m *Manager) note(index int, err error) {
	if err == nil {
		delete(m.failed, index)
		return
	}
	if m.failed[index] == nil || m.failed[index].Error() != err.Error() {
		m.options.Log.Error("serve a device", zap.Int("ifindex", index), zap.Error(err))
	}
	m.failed[index] = err
}

// scheduleRetry says when what failed is tried again.
func (m *Manager) scheduleRetry(hadFailed bool) {
	if len(m.failed) == 0 {
		m.backoff = freshBackoff()
		return
	}
	if !hadFailed {
		m.backoff = freshBackoff()
	}
	m.retryAt = time.Now().Add(m.backoff.Step())
}

// publish tells others what there is to tell.
func (m *Manager) publish(view picture) {
	problems := m.findProblems(view)
	ends := compile.TunnelEnds{Sources: m.records.sources(), Prefixes: bridgedPrefixes(m.state.devices, view.roles)}
	m.mu.Lock()
	m.problems, m.ends = problems, ends
	m.mu.Unlock()
	if m.options.Changed != nil {
		m.options.Changed()
	}
}

// findProblems lists what is wrong.
func (m *Manager) findProblems(view picture) []compile.Problem {
	var problems []compile.Problem
	for _, pattern := range m.unmatched() {
		problems = append(problems, compile.Problem{
			Object: "Device " + pattern, Reason: "DeviceMissing",
			Message: fmt.Sprintf("--devices names %s, and there is no such device: waiting for it", pattern),
		})
	}
	if m.options.NodePorts.Primary && m.primary == nil {
		problems = append(problems, compile.Problem{
			Object: "Node", Reason: "NodeAddressUnknown",
			Message: "--nodeport-addresses is primary, and Node.status has no InternalIP yet: NodePorts answer where they did before",
		})
	}
	for _, d := range inOrder(m.state.devices) {
		if reason := view.roles[d.index].reason; reason != "" {
			problems = append(problems, compile.Problem{Object: "Device " + d.name, Reason: "DeviceNotServed", Message: reason})
		}
		if err := m.failed[d.index]; err != nil {
			problems = append(problems, compile.Problem{Object: "Device " + d.name, Reason: "AttachFailed", Message: err.Error()})
		}
	}
	if err := m.failed[ofNode]; err != nil {
		problems = append(problems, compile.Problem{Object: "Node", Reason: "AddressesNotWritten", Message: err.Error()})
	}
	return problems
}
