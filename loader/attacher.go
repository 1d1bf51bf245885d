package loader

import (
	"errors"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/maps"
)

// XDPMode says where XDP programs may be attached.
type XDPMode string

// The modes of XDP. None of them ever fails: a device that cannot have it is left to tc, with a reason.
const (
	XDPAuto    XDPMode = "auto"    // natively, where the driver does it without harm
	XDPNative  XDPMode = "native"  // natively, wherever the driver takes it
	XDPGeneric XDPMode = "generic" // natively, else in the stack: for tests, it sees packets that are not the wire's
	XDPOff     XDPMode = "off"
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
	Kind     string        // of rtnetlink: "veth", "vxlan", ""
	Edge     maps.EdgeKind // maps.EdgeNone: nothing of ours is to be on it
	Up       bool          // nothing is attached to a device of the node edge before it is
	Ethernet bool          // packets have an Ethernet header
	Parent   bool          // VLAN devices are made on top of it
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
	Edge    maps.EdgeKind
	Hooks   []Hook
	Foreign []string // programs of others, in the order that packets meet them: "tcx ingress cil_from_netdev"
	Reasons []string // why not otherwise: "no native XDP: the driver has none"
}

// Changes counts what an Attacher has done since it was made. Where everything is found as it should be, all are 0.
type Changes struct {
	Attached int // programs put on a device
	Updated  int // programs replaced in place
	Moved    int // programs put to the right side of others
	Detached int // programs taken off a device
}

// Attacher keeps the programs on the devices. One goroutine calls Attach, Detach and Retain, in the network
// namespace of the devices; the rest may be called from anywhere.
type Attacher struct {
	programs *Programs
	set      *maps.Set
	options  AttachOptions
}

// NewAttacher returns an attacher that adopts what is attached and pinned already. It changes nothing yet.
func NewAttacher(programs *Programs, set *maps.Set, options AttachOptions) (*Attacher, error) {
	return &Attacher{programs: programs, set: set, options: options}, nil
}

// Attach makes the device have the programs of its edge, on the right side of others', and no others of ours. It
// is called whenever something about the device changes, and does nothing where all is right. An edge that cannot
// be had is an error; XDP that cannot be had is a reason in the Attachment.
func (a *Attacher) Attach(device Device) (Attachment, error) {
	return Attachment{}, errors.ErrUnsupported
}

// Known tells whether programs of ours are on the device, left there by a predecessor or by Attach.
func (a *Attacher) Known(ifindex int) bool { return false }

// Detach takes our programs off a device. It may be gone already.
func (a *Attacher) Detach(ifindex int) error { return errors.ErrUnsupported }

// Retain forgets, and unpins, whatever belongs to other devices than these.
func (a *Attacher) Retain(ifindexes []int) error { return errors.ErrUnsupported }

// Attachments returns how every device is served, in order of their indices.
func (a *Attacher) Attachments() []Attachment { return nil }

// Changes returns what was done since the attacher was made.
func (a *Attacher) Changes() Changes { return Changes{} }

// Close closes handles. What is attached stays attached.
func (a *Attacher) Close() error { return nil }
