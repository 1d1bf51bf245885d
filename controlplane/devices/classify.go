package devices

import (
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/maps"
)

// role is what a device is to us.
type role struct {
	edge     maps.EdgeKind
	recorded bool   // it has an entry in the map devices
	attached bool   // programs belong on it
	toPods   bool   // what the stack sends out here goes to this node's pods
	reason   string // why it is no edge, where one might wonder
}

// classify says what each device is. Patterns are what the operator calls the node edge; none: it is found.
func classify(devices map[int]*device, patterns []string) map[int]role {
	roles := make(map[int]role, len(devices))
	carriers := hasVLANs(devices)
	for index, d := range devices {
		roles[index] = roleOf(d, devices[d.master], carriers[index], patterns)
	}
	for index, d := range devices {
		if r := roles[index]; d.kind == "bridge" && r.edge == maps.EdgeNone {
			r.toPods = onlyPods(index, devices, roles)
			roles[index] = r
		}
	}
	return roles
}

// roleOf says what one device is. The master may be nil. A veth is a wire like any other, and no pod's, where the node
// bundles it or has VLANs on it (carries): nodes may be namespaces themselves.
func roleOf(d, master *device, carries bool, patterns []string) role {
	named, bundled := matchesAny(d, patterns), master != nil && master.bonds()
	switch {
	case d.loopback:
		return role{}
	case named:
		return nodeEdge(d)
	case d.kind == "bridge":
		return role{recorded: true}
	case d.leadsAway() && !d.isUplink() && !carries && !bundled:
		return role{edge: maps.EdgePod, recorded: true, attached: true}
	case len(patterns) > 0:
		return role{}
	case isNoWire(d.kind):
		return role{}
	case bundled:
		// The bundle is the edge. XDP programs on it see its ports, so those have to be known.
		return role{edge: maps.EdgeNode, recorded: true}
	default:
		return nodeEdge(d)
	}
}

// nodeEdge is the role of a device of the node edge, where its packets can be read.
func nodeEdge(d *device) role {
	if d.header() == headerUnknown {
		return role{reason: fmt.Sprintf("not served: packets of hardware type %d (linux/if_arp.h) are not understood", d.hardware)}
	}
	return role{edge: maps.EdgeNode, recorded: true, attached: true}
}

// onlyPods tells whether all ports of a bridge, one at least, are pods'.
func onlyPods(bridge int, devices map[int]*device, roles map[int]role) bool {
	ports := 0
	for index, d := range devices {
		if d.master != bridge {
			continue
		}
		if roles[index].edge != maps.EdgePod {
			return false
		}
		ports++
	}
	return ports > 0
}

// isNoWire tells whether nothing comes in by devices of that kind from anywhere else, or only what came in by another
// device before.
func isNoWire(kind string) bool {
	return slices.Contains([]string{"dummy", "ifb", "nlmon", "vrf", "vcan", "vxcan", "netdevsim"}, kind)
}

// header is what packets on a device begin with.
type header uint8

const (
	headerUnknown  header = iota
	headerEthernet        // an Ethernet header
	headerIP              // the IP header
)

// arphrdRawIP is ARPHRD_RAWIP: mobile broadband.
const arphrdRawIP = 519

// header tells what packets on the device begin with.
func (d *device) header() header {
	switch d.hardware {
	case unix.ARPHRD_ETHER:
		return headerEthernet
	case unix.ARPHRD_NONE, unix.ARPHRD_TUNNEL, unix.ARPHRD_TUNNEL6, unix.ARPHRD_SIT, unix.ARPHRD_IPGRE,
		unix.ARPHRD_IP6GRE, unix.ARPHRD_PPP, arphrdRawIP:
		return headerIP
	default:
		return headerUnknown
	}
}

// matchesAny tells whether a device has a name, or an alternative one, of one of the patterns.
func matchesAny(d *device, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(d, pattern) })
}

func matches(d *device, pattern string) bool {
	for _, name := range append([]string{d.name}, d.altNames...) {
		if ok, err := path.Match(pattern, name); err == nil && ok {
			return true
		}
	}
	return false
}

// hasVLANs returns the devices that VLAN devices are made on top of.
func hasVLANs(devices map[int]*device) map[int]bool {
	lower := map[int]bool{}
	for _, d := range devices {
		if d.kind == "vlan" && d.namespace == hereNamespace {
			lower[d.lower] = true
		}
	}
	return lower
}
