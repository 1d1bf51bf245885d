package loader

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// AttachOptions say how programs are attached.
type AttachOptions struct {
	Pins     string // the directory of pins, <bpffs>/weir
	XDP      XDPMode
	Clsact   bool // use clsact filters although the kernel has tcx
	Features Features
	Log      *zap.Logger
}

// Device is what an Attacher must know of a network device.
type Device struct {
	Index    int
	Name     string
	Kind     string            // of rtnetlink: "veth", "vxlan", "" of hardware
	Edge     weirmaps.EdgeKind // EdgeNone: nothing of ours is to be on it
	Up       bool              // nothing is attached to a device of the node edge before it is
	Ethernet bool              // packets have an Ethernet header
	Parent   bool              // VLAN devices are made on top of it
	MTU      int               // bytes
}

// How is a way of attaching a program.
type How string

// The ways of attaching a program.
const (
	HowTCX        How = "tcx"
	HowClsact     How = "clsact"
	HowXDPNative  How = "xdp native"
	HowXDPGeneric How = "xdp generic"
)

// Hook is a program of ours on a device.
type Hook struct {
	Program string // its name in C
	How     How
}

// Attachment is how a device is served.
type Attachment struct {
	Device  string
	Ifindex int
	Edge    weirmaps.EdgeKind
	Hooks   []Hook
	Foreign []string // programs of others, in the order that packets meet them: "tcx ingress cil_from_netdev"
	Reasons []string // why not otherwise: "no native XDP: the driver e1000 has none"
}

// Changes counts what an Attacher has done since it was made. Where everything is found as it should be, all are 0.
type Changes struct {
	Attached int // programs put on a device
	Updated  int // programs replaced in place
	Moved    int // programs put to the right side of others
	Detached int // programs taken off a device
}

// Attacher keeps the programs on the devices. It remembers nothing about them but what it reports: each call looks at
// what is attached and pinned, and changes what is not right.
//
// Attach, Detach, Retain and Known are called on threads in the network namespace of the devices: for different devices
// at once, for one device one after another. The rest may be called from anywhere.
type Attacher struct {
	programs *Programs
	set      *weirmaps.Set
	options  AttachOptions
	links    *netlink.Handle

	mu          sync.Mutex
	refused     map[int]refusal // XDP, by ifindex
	moves       map[int]int     // by ifindex
	attachments map[int]Attachment
	changes     Changes
}

// NewAttacher returns an attacher for the devices of the calling thread's network namespace. It changes nothing yet.
func NewAttacher(programs *Programs, set *weirmaps.Set, options AttachOptions) (*Attacher, error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &Attacher{
		programs: programs, set: set, options: options, links: links,
		refused: map[int]refusal{}, moves: map[int]int{}, attachments: map[int]Attachment{},
	}, nil
}

// Close closes handles. What is attached stays attached.
func (a *Attacher) Close() error {
	a.links.Close()
	return nil
}

// Attach makes the device have the programs of its edge, on the right side of others', and no others of ours. It
// is called whenever something about the device changes, and does nothing where all is right. An edge that cannot
// be had is an error; XDP that cannot be had is a reason in the Attachment.
func (a *Attacher) Attach(device Device) (Attachment, error) {
	attachment := Attachment{Device: device.Name, Ifindex: device.Index, Edge: device.Edge}
	err := a.attach(device, &attachment)
	if err != nil {
		err = fmt.Errorf("attach to %s: %w", device.Name, err)
		attachment.Reasons = append(attachment.Reasons, err.Error())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.attachments[device.Index] = attachment
	return attachment, err
}

// attach does it. The side that translates back comes first, so that no packet is translated one way only.
func (a *Attacher) attach(device Device, attachment *Attachment) error {
	if device.Edge == weirmaps.EdgeNode && !device.Up && !a.Known(device.Index) {
		attachment.Reasons = append(attachment.Reasons, "the device is down")
		return nil
	}
	wanted, err := a.plan(device, attachment)
	if err != nil {
		return err
	}
	for _, p := range wanted {
		if err := a.place(device, p); err != nil {
			return err
		}
		attachment.Hooks = append(attachment.Hooks, Hook{Program: p.program, How: p.how})
	}
	if err := a.removeOthers(device.Index, wanted); err != nil {
		return err
	}
	if err := a.attachXDP(device, attachment); err != nil {
		return err
	}
	attachment.Foreign, err = a.foreign(device.Index)
	return err
}

// placement is where a program shall be.
type placement struct {
	program string
	side    side
	how     How
}

// plan decides where programs go on a device.
func (a *Attacher) plan(device Device, attachment *Attachment) ([]placement, error) {
	ingress, egress := programsOf(device.Edge)
	if ingress == "" {
		return nil, nil
	}
	enter := placement{program: ingress, side: ingressSide(), how: HowTCX}
	leave := placement{program: egress, side: egressSide(), how: HowTCX}
	if a.options.Clsact || !a.options.Features.TCX {
		enter.how, leave.how = HowClsact, HowClsact
	}
	behind, err := a.foreignFilters(device.Index, leave.side)
	if err != nil {
		return nil, err
	}
	if len(behind) == 0 {
		return []placement{leave, enter}, nil
	}
	name, ends := endsChain(behind)
	switch {
	case !ends:
		// tcx runs before clsact at egress too: only a filter is behind theirs.
		leave.how = HowClsact
	case device.Edge == weirmaps.EdgePod:
		attachment.Reasons = append(attachment.Reasons, fmt.Sprintf(
			"no pod edge: the clsact egress filter %s lets nothing reach programs behind it", name))
		return nil, nil
	default:
		attachment.Reasons = append(attachment.Reasons, fmt.Sprintf(
			"ahead of the clsact egress filter %s, which lets nothing reach programs behind it", name))
		if leave.how == HowClsact {
			leave.side = leave.side.ahead()
		}
	}
	return []placement{leave, enter}, nil
}

// programsOf names the programs of an edge.
func programsOf(edge weirmaps.EdgeKind) (ingress, egress string) {
	switch edge {
	case weirmaps.EdgeNode:
		return "node_ingress", "node_egress"
	case weirmaps.EdgePod:
		return "pod_ingress", "pod_egress"
	default:
		return "", ""
	}
}

// tcPrograms names every program for tc, those that translate first before those that translate back: the order in
// which they are taken off a device.
func tcPrograms() []string {
	return []string{"node_ingress", "pod_ingress", "node_egress", "pod_egress"}
}

// place makes one program be where it shall be.
func (a *Attacher) place(device Device, p placement) error {
	program := a.programs.ByName()[p.program]
	if p.how == HowTCX {
		return a.placeTCX(device, p, program)
	}
	return a.placeFilter(device, p, program)
}

// removeOthers takes off a device all programs for tc but those that are wanted there.
func (a *Attacher) removeOthers(ifindex int, wanted []placement) error {
	unwanted := func(program string, how How) bool {
		return !slices.ContainsFunc(wanted, func(p placement) bool { return p.program == program && p.how == how })
	}
	var failed error
	for _, program := range tcPrograms() {
		if unwanted(program, HowTCX) {
			failed = errors.Join(failed, a.unpinLink(a.linkPin(ifindex, program), true))
		}
	}
	for _, side := range []side{ingressSide(), egressSide()} {
		ours, err := a.ourFilters(ifindex, side)
		failed = errors.Join(failed, err)
		for _, filter := range ours {
			if unwanted(programOfFilter(filter), HowClsact) {
				failed = errors.Join(failed, a.removeFilter(filter))
			}
		}
	}
	return errors.Join(failed, a.removeQdisc(ifindex))
}

// Known tells whether programs of ours are on the device, left there by a predecessor or by Attach.
func (a *Attacher) Known(ifindex int) bool {
	for _, program := range append(tcPrograms(), xdpProgram) {
		pinned, err := openLink(a.linkPin(ifindex, program))
		if err != nil || pinned == nil {
			continue
		}
		at := pinned.ifindex
		pinned.Close()
		if at == ifindex {
			return true
		}
	}
	for _, side := range []side{ingressSide(), egressSide()} {
		if ours, err := a.ourFilters(ifindex, side); err == nil && len(ours) > 0 {
			return true
		}
	}
	return false
}

// Detach takes our programs off a device. It may be gone already.
func (a *Attacher) Detach(ifindex int) error {
	err := errors.Join(a.detachXDP(ifindex), a.removeOthers(ifindex, nil))
	if err != nil {
		return fmt.Errorf("detach from device %d: %w", ifindex, err)
	}
	a.forget(ifindex)
	return nil
}

// forget drops what is remembered of a device that is gone.
func (a *Attacher) forget(ifindex int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.refused, ifindex)
	delete(a.moves, ifindex)
	delete(a.attachments, ifindex)
}

// Attachments returns how every device is served, in order of their indices.
func (a *Attacher) Attachments() []Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.attachments), func(x, y Attachment) int {
		return cmp.Compare(x.Ifindex, y.Ifindex)
	})
}

// Changes returns what was done since the attacher was made.
func (a *Attacher) Changes() Changes {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changes
}

// done counts and logs a change.
func (a *Attacher) done(what string, counter func(*Changes) *int, fields ...zap.Field) {
	a.options.Log.Info(what, fields...)
	a.mu.Lock()
	defer a.mu.Unlock()
	*counter(&a.changes)++
}

func attached(c *Changes) *int { return &c.Attached }
func updated(c *Changes) *int  { return &c.Updated }
func moved(c *Changes) *int    { return &c.Moved }
func detached(c *Changes) *int { return &c.Detached }

// foreign lists the programs of others on a device, in the order that packets meet them.
func (a *Attacher) foreign(ifindex int) ([]string, error) {
	var found []string
	for _, s := range []side{ingressSide(), egressSide()} {
		chain, err := a.tcxChain(ifindex, s)
		if err != nil {
			return nil, err
		}
		for _, program := range chain {
			if !program.ours {
				found = append(found, fmt.Sprintf("tcx %s %s", s.name, nameOfProgram(program.id)))
			}
		}
		filters, err := a.foreignFilters(ifindex, s)
		if err != nil {
			return nil, err
		}
		for _, filter := range filters {
			found = append(found, fmt.Sprintf("clsact %s %s", s.name, nameOfFilter(filter)))
		}
	}
	return found, nil
}

// nameOfProgram returns the name that a program was loaded with.
func nameOfProgram(id ebpf.ProgramID) string {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Sprintf("program %d", id)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil || info.Name == "" {
		return fmt.Sprintf("program %d", id)
	}
	return info.Name
}
