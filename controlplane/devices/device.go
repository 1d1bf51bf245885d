package devices

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// device is what is known of a network device.
type device struct {
	index     int
	name      string
	altNames  []string
	kind      string // of rtnetlink; "" of hardware
	hardware  uint16 // ARPHRD_* of linux/if_arp.h: says what packets begin with
	up        bool
	loopback  bool
	mac       [6]byte // zero if it has none
	mtu       int
	master    int // the device that it is a port of; 0 if none
	lower     int // the other end of a veth, the device under a VLAN; 0 if none
	namespace int // the id of the network namespace that lower is in; hereNamespace: this one

	addresses []address // in the kernel's order
	routes    []defaultRoute
}

// hereNamespace stands for the network namespace that the devices are in.
const hereNamespace = -1

// address is an address of a device.
type address struct {
	prefix netip.Prefix // the address with the length of its network
	flags  uint32       // IFA_F_* of linux/if_addr.h
}

// defaultRoute is a default route out of a device.
type defaultRoute struct {
	ipv6   bool
	table  int
	metric int
	source netip.Addr // that packets get on it; invalid: of the device's choice
	router netip.Addr // invalid: everybody is on the link
}

// isMain tells whether the route is one that packets take by which no rule goes.
func (r defaultRoute) isMain() bool { return r.table == unix.RT_TABLE_MAIN }

// better tells whether a route is preferred to another one of the device and family.
func (r defaultRoute) better(than defaultRoute) bool {
	if r.isMain() != than.isMain() {
		return r.isMain()
	}
	return cmp.Or(cmp.Compare(r.metric, than.metric), cmp.Compare(r.table, than.table)) < 0
}

// isSecondary tells of an IPv4 address that another of its network comes first, and of an IPv6 address that it is
// temporary (IFA_F_SECONDARY and IFA_F_TEMPORARY are one flag).
func (a address) isSecondary() bool { return a.flags&unix.IFA_F_SECONDARY != 0 }

// isUsable tells whether the address has been found to be ours alone.
func (a address) isUsable() bool {
	if a.flags&unix.IFA_F_DADFAILED != 0 {
		return false
	}
	return a.flags&unix.IFA_F_TENTATIVE == 0 || a.flags&unix.IFA_F_OPTIMISTIC != 0
}

// isGlobal tells whether others may use the address to reach this node.
func (a address) isGlobal() bool {
	addr := a.prefix.Addr()
	return addr.IsGlobalUnicast() && !addr.IsLinkLocalUnicast()
}

// isHost tells whether the address is alone in its network: it says nothing about what is behind the device.
func (a address) isHost() bool { return a.prefix.Bits() == a.prefix.Addr().BitLen() }

// bridges tells whether ports of such a device are one with it: packets for its MAC come in by them.
func (d *device) bridges() bool {
	return d.kind == "bridge" || d.bonds()
}

// bonds tells whether the device is a bundle of others.
func (d *device) bonds() bool { return d.kind == "bond" || d.kind == "team" }

// leadsAway tells whether the device is the near end of one that is in another network namespace.
func (d *device) leadsAway() bool {
	return (d.kind == "veth" || d.kind == "netkit") && d.namespace != hereNamespace
}

// isUplink tells whether the node itself is at home on the device: a default route, or an address with a network. The
// gateway's address that some CNIs put on every pod's veth is alone in its network.
func (d *device) isUplink() bool {
	if slices.ContainsFunc(d.routes, defaultRoute.isMain) {
		return true
	}
	for _, a := range d.addresses {
		if a.isGlobal() && !a.isHost() {
			return true
		}
	}
	return false
}

// sourceAddress returns the address that the node's packets get when they leave by the device; invalid if it has none
// of that family.
func (d *device) sourceAddress(ipv6 bool) netip.Addr {
	var best address
	for _, a := range d.addresses {
		if a.prefix.Addr().Is6() == ipv6 && a.isGlobal() && a.isUsable() && a.flags&unix.IFA_F_DEPRECATED == 0 &&
			(!best.prefix.IsValid() || a.betterSource(best)) {
			best = a
		}
	}
	return best.prefix.Addr()
}

// betterSource tells whether an address is to be preferred to one that comes before it. Addresses that are alone in
// their network are often somebody's virtual ones. The order of IPv6 addresses is not stable in the kernel.
func (a address) betterSource(than address) bool {
	if a.isSecondary() != than.isSecondary() {
		return than.isSecondary()
	}
	if a.isHost() != than.isHost() {
		return than.isHost()
	}
	return a.prefix.Addr().Is6() && a.prefix.Addr().Less(than.prefix.Addr())
}
