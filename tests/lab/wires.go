package lab

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoWire is that this kernel cannot make a wire.
var ErrNoWire = errors.New("this kernel has no such devices")

// Kernels have these or not; the wires of the lab's picture need nothing that Weir does not need.
const (
	VLAN Wire = "vlan" // 802.1Q devices of VLAN 100, over veths
	Bond Wire = "bond" // bonds of two veths each, of which one carries everything
)

const vlanID = 100

// connect joins two hosts by a wire.
func (l *Lab) connect(wire Wire, a *Host, aName string, b *Host, bName string) error {
	switch wire {
	case Tun:
		return l.addTunPair(a, aName, b, bName)
	case VLAN:
		return errors.Join(addVeth(a, aName+"p", b, bName+"p"), a.addVLAN(aName), b.addVLAN(bName))
	case Bond:
		if err := errors.Join(a.addBond(aName), b.addBond(bName)); err != nil {
			return err
		}
		for _, port := range []string{"p1", "p2"} {
			if err := addVeth(a, aName+port, b, bName+port); err != nil {
				return err
			}
			if err := errors.Join(a.addBondPort(aName, aName+port), b.addBondPort(bName, bName+port)); err != nil {
				return err
			}
		}
		return errors.Join(a.setUp(aName), b.setUp(bName))
	default:
		return addVeth(a, aName, b, bName)
	}
}

// addVLAN makes a VLAN device over the veth of the same name with a p.
func (h *Host) addVLAN(name string) error {
	parent, err := h.Link(name + "p")
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, parent.Attrs().Index
	if err := h.links.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: vlanID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
		return fmt.Errorf("add VLAN device %s in %s: %w", name, h.Name, missing(err))
	}
	return h.setUp(name)
}

// addBond makes a bond without ports.
func (h *Host) addBond(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bond := netlink.NewLinkBond(attrs)
	bond.Mode, bond.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 100
	if err := h.links.LinkAdd(bond); err != nil {
		return fmt.Errorf("add bond %s in %s: %w", name, h.Name, missing(err))
	}
	return nil
}

// addBondPort makes a device, which has to be down for it, a port of a bond.
func (h *Host) addBondPort(bond, port string) error {
	master, err := h.Link(bond)
	if err != nil {
		return err
	}
	link, err := h.Link(port)
	if err != nil {
		return err
	}
	if err := h.links.LinkSetDown(link); err != nil {
		return fmt.Errorf("set %s down in %s: %w", port, h.Name, err)
	}
	if err := h.links.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("make %s a port of %s in %s: %w", port, bond, h.Name, err)
	}
	return h.setUp(port)
}

// missing tells an error that says that the kernel has no such devices.
func missing(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", ErrNoWire, err)
	}
	return err
}
