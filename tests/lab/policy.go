package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hook is how a program is attached to a device for traffic control.
type Hook string

// The hooks of a foreign policy.
const (
	TCX    Hook = "tcx"
	Clsact Hook = "clsact"
)

// PolicySpec says where a stateful policy of somebody else stands.
type PolicySpec struct {
	Device       string
	Hook         Hook
	Before       bool // ahead of what is attached already, instead of behind it
	OpensAtEntry bool // flows may begin with packets that come in by the device; else with ones that leave by it
}

// Policy is a stateful policy of somebody else, attached (bpf/policy.bpf.c).
type Policy struct {
	objects policyObjects
	detach  []func() error
}

// AttachPolicy attaches a policy to a device of the host.
func (h *Host) AttachPolicy(spec PolicySpec) (*Policy, error) {
	p := &Policy{}
	if err := loadPolicyObjects(&p.objects, nil); err != nil {
		return nil, fmt.Errorf("load the foreign policy: %w", err)
	}
	device, err := h.Link(spec.Device)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	entry, exit := p.objects.PolicyReply, p.objects.PolicyOpen
	if spec.OpensAtEntry {
		entry, exit = exit, entry
	}
	attach := p.attachTCX
	if spec.Hook == Clsact {
		attach = p.attachClsact
	}
	if err := attach(h, device.Attrs().Index, spec.Before, entry, exit); err != nil {
		return nil, errors.Join(fmt.Errorf("attach the foreign policy to %s: %w", spec.Device, err), p.Close())
	}
	return p, nil
}

// attachTCX attaches by links.
func (p *Policy) attachTCX(h *Host, ifindex int, before bool, entry, exit *ebpf.Program) error {
	anchor := link.Tail()
	if before {
		anchor = link.Head()
	}
	return h.Do(func() error {
		for _, side := range []link.TCXOptions{
			{Program: entry, Attach: ebpf.AttachTCXIngress, Interface: ifindex, Anchor: anchor},
			{Program: exit, Attach: ebpf.AttachTCXEgress, Interface: ifindex, Anchor: anchor},
		} {
			attached, err := link.AttachTCX(side)
			if err != nil {
				return err
			}
			p.detach = append(p.detach, attached.Close)
		}
		return nil
	})
}

// attachClsact attaches by filters, in the classifier queue that the device has or gets.
func (p *Policy) attachClsact(h *Host, ifindex int, before bool, entry, exit *ebpf.Program) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := h.links.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	priority := uint16(0xfff0)
	if before {
		priority = 1
	}
	for parent, program := range map[uint32]*ebpf.Program{netlink.HANDLE_MIN_INGRESS: entry, netlink.HANDLE_MIN_EGRESS: exit} {
		filter := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: ifindex, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority,
			},
			Fd: program.FD(), Name: "policy", DirectAction: true,
		}
		if err := h.links.FilterAdd(filter); err != nil {
			return err
		}
		p.detach = append(p.detach, func() error { return h.links.FilterDel(filter) })
	}
	return nil
}

// Close detaches the policy.
func (p *Policy) Close() error {
	var err error
	for _, detach := range p.detach {
		err = errors.Join(err, detach())
	}
	p.detach = nil
	return errors.Join(err, p.objects.Close())
}

// Flows counts the flows that the policy has seen begin.
func (p *Policy) Flows() (int, error) { return countEntries(p.objects.Connections) }

// Dropped lists what the policy dropped, for people.
func (p *Policy) Dropped() ([]string, error) {
	var (
		lines []string
		c     policyConnection
		count uint64
	)
	entries := p.objects.Dropped.Iterate()
	for entries.Next(&c, &count) {
		lines = append(lines, fmt.Sprintf("%d x protocol %d %s -> %s", count, c.Protocol,
			wireAddress(c.Source, c.SourcePort), wireAddress(c.Destination, c.DestinationPort)))
	}
	return lines, entries.Err()
}

// countEntries counts what a map holds.
func countEntries(m *ebpf.Map) (int, error) {
	var (
		count      int
		key, value []byte
	)
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		count++
	}
	return count, entries.Err()
}

// wireAddress reads an address of policy.bpf.c: an IPv4 one has zeros behind it.
func wireAddress(bytes [16]byte, port uint16) netip.AddrPort {
	address := netip.AddrFrom16(bytes)
	if [12]byte(bytes[4:]) == [12]byte{} {
		address = netip.AddrFrom4([4]byte(bytes[:4]))
	}
	return netip.AddrPortFrom(address, port<<8|port>>8)
}
