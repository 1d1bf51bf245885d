package devices

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-lb/weir/maps"
)

// NodePortAddresses is what --nodeport-addresses asks for. The zero one is: all addresses of the node.
type NodePortAddresses struct {
	Primary  bool // the node's first address of each family in Node.status
	Prefixes []netip.Prefix
}

// ParseNodePortAddresses reads a list of prefixes, or "primary" alone (rule N02).
func ParseNodePortAddresses(texts []string) (NodePortAddresses, error) {
	if slices.Contains(texts, "primary") {
		if len(texts) > 1 {
			return NodePortAddresses{}, errors.New(`"primary" stands alone: name it or prefixes, not both`)
		}
		return NodePortAddresses{Primary: true}, nil
	}
	var wanted NodePortAddresses
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return NodePortAddresses{}, fmt.Errorf("%q is not a prefix like 192.0.2.0/24, nor \"primary\"", text)
		}
		wanted.Prefixes = append(wanted.Prefixes, prefix.Masked())
	}
	return wanted, nil
}

// allows tells whether NodePorts may answer on an address of the node.
func (n NodePortAddresses) allows(addr netip.Addr) bool {
	return len(n.Prefixes) == 0 || slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// nodePortAddresses returns the addresses on which NodePorts answer, each with the device that has it. Primary is what
// Node.status has.
func nodePortAddresses(devices map[int]*device, roles map[int]role, wanted NodePortAddresses, primary []netip.Addr) map[netip.Addr]uint32 {
	all := map[netip.Addr]uint32{}
	for _, d := range inOrder(devices) {
		if roles[d.index].edge == maps.EdgePod || bindsVIPs(d) {
			continue
		}
		for _, a := range d.addresses {
			addr := a.prefix.Addr()
			if _, known := all[addr]; !known && a.isGlobal() && a.isUsable() && wanted.allows(addr) {
				all[addr] = uint32(d.index)
			}
		}
	}
	if !wanted.Primary {
		return all
	}
	first := map[netip.Addr]uint32{}
	for _, addr := range firstOfEach(primary) {
		first[addr] = all[addr]
	}
	return first
}

// firstOfEach returns the first address of each family.
func firstOfEach(addresses []netip.Addr) []netip.Addr {
	var first []netip.Addr
	for _, addr := range addresses {
		if !slices.ContainsFunc(first, func(known netip.Addr) bool { return known.Is4() == addr.Is4() }) {
			first = append(first, addr)
		}
	}
	return first
}

// bindsVIPs tells of the devices on which others put addresses of Services: kube-proxy's for ipvs, NodeLocal
// DNSCache's. Those are not the node's.
func bindsVIPs(d *device) bool {
	return d.kind == "dummy" && (d.name == "kube-ipvs0" || strings.HasPrefix(d.name, "nodelocaldns"))
}

// source returns the address that stands for the node on a device: its own, that of the bridge or bond it is a port
// of, or the node's first one, as the kernel would choose. Invalid if there is none of that family.
func source(d *device, devices map[int]*device, primary netip.Addr, ipv6 bool) netip.Addr {
	if addr := d.sourceAddress(ipv6); addr.IsValid() {
		return addr
	}
	if master := devices[d.master]; master != nil && master.bridges() {
		if addr := master.sourceAddress(ipv6); addr.IsValid() {
			return addr
		}
	}
	return primary
}

// primaryAddress returns the node's first address of a family: that of its best default route, else of the first
// device that has one. Invalid if there is none.
func primaryAddress(devices map[int]*device, roles map[int]role, ipv6 bool) netip.Addr {
	var best netip.Addr
	metric := -1
	for _, d := range inOrder(devices) {
		for _, route := range d.routes {
			if route.ipv6 != ipv6 || !route.isMain() || metric >= 0 && route.metric >= metric {
				continue
			}
			addr := route.source
			if !addr.IsValid() {
				addr = d.sourceAddress(ipv6)
			}
			if addr.IsValid() {
				best, metric = addr, route.metric
			}
		}
	}
	if best.IsValid() {
		return best
	}
	for _, d := range inOrder(devices) {
		if roles[d.index].edge == maps.EdgePod || bindsVIPs(d) {
			continue
		}
		if addr := d.sourceAddress(ipv6); addr.IsValid() {
			return addr
		}
	}
	return best
}

// bridgedPrefixes returns the networks behind bridges that lead to this node's pods alone, sorted.
func bridgedPrefixes(devices map[int]*device, roles map[int]role) []netip.Prefix {
	var prefixes []netip.Prefix
	for index, d := range devices {
		if !roles[index].toPods {
			continue
		}
		for _, a := range d.addresses {
			if a.isGlobal() && !a.isHost() {
				prefixes = append(prefixes, a.prefix.Masked())
			}
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return slices.Compact(prefixes)
}

// inOrder returns the devices in order of their indices.
func inOrder(devices map[int]*device) []*device {
	ordered := make([]*device, 0, len(devices))
	for _, d := range devices {
		ordered = append(ordered, d)
	}
	slices.SortFunc(ordered, func(a, b *device) int { return cmp.Compare(a.index, b.index) })
	return ordered
}
