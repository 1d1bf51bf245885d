package packet

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// way is what routing says of a destination.
type way int

const (
	wayOut         way = iota // to a neighbour whose MAC is known
	wayNoNeighbour            // to a neighbour whose MAC is not
	wayByRouter               // no route, but to the router at the end of a device
	wayStack                  // for the stack: an address of the node, or no route
	wayTooBig
	wayDrop
)

// route is a route of the kernel.
type route struct {
	prefix  netip.Prefix
	gateway netip.Addr
	device  int
	kind    int // RTN_*
}

// hop is where a packet goes next.
type hop struct {
	way    way
	device *Device
	mac    net.HardwareAddr
	mtu    int
}

// routing is the node's routes and neighbours, as the kernel says they are.
type routing struct {
	tables     [][]route // in the order they are asked
	neighbours map[neighbour]net.HardwareAddr
	devices    map[int]*Device
}

type neighbour struct {
	device  int
	address netip.Addr
}

// readRouting asks the kernel.
func readRouting(node *Node) (*routing, error) {
	r := &routing{neighbours: make(map[neighbour]net.HardwareAddr), devices: make(map[int]*Device)}
	for _, device := range node.devices {
		r.devices[device.Index] = device
	}
	for _, table := range []int{unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN} {
		routes, err := readTable(table)
		if err != nil {
			return nil, fmt.Errorf("read routing table %d: %w", table, err)
		}
		r.tables = append(r.tables, routes)
	}
	found, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("read neighbours: %w", err)
	}
	for _, n := range found {
		address, ok := netip.AddrFromSlice(n.IP)
		if ok && n.State == netlink.NUD_PERMANENT {
			r.neighbours[neighbour{n.LinkIndex, address.Unmap()}] = n.HardwareAddr
		}
	}
	return r, nil
}

func readTable(table int) ([]route, error) {
	found, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	var routes []route
	for _, f := range found {
		address, _ := netip.AddrFromSlice(f.Dst.IP)
		bits, _ := f.Dst.Mask.Size()
		gateway, _ := netip.AddrFromSlice(f.Gw)
		routes = append(routes, route{netip.PrefixFrom(address.Unmap(), bits), gateway.Unmap(), f.LinkIndex, f.Type})
	}
	return routes, nil
}

// find returns the longest match in the first table that has one. IPv4 routes out of other devices than
// `out` are passed over, where that is not 0; a route that refuses is out of none.
func (r *routing) find(to netip.Addr, out int) (best route, ok bool) {
	for _, table := range r.tables {
		for _, candidate := range table {
			wrongDevice := out != 0 && to.Is4() && candidate.device != 0 && candidate.device != out
			longer := !ok || candidate.prefix.Bits() > best.prefix.Bits()
			if !wrongDevice && longer && candidate.prefix.Contains(to) {
				best, ok = candidate, true
			}
		}
		if ok {
			return best, best.kind != unix.RTN_THROW
		}
	}
	return best, false
}

// next says how a packet of that length goes on to an address.
func (r *routing) next(to netip.Addr, length, out int) hop {
	found, ok := r.find(to, out)
	if !ok {
		return hop{way: wayStack}
	}
	switch found.kind {
	case unix.RTN_UNICAST:
	case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
		return hop{way: wayDrop}
	default:
		return hop{way: wayStack}
	}
	h := hop{device: r.devices[found.device]}
	if h.device == nil {
		return hop{way: wayStack}
	}
	if length > h.device.MTU {
		return hop{way: wayTooBig, mtu: h.device.MTU}
	}
	if found.gateway.IsValid() {
		to = found.gateway
	}
	h.mac = r.neighbours[neighbour{found.device, to}]
	if len(bytes.TrimLeft(h.mac, "\x00")) == 0 {
		h.way = wayNoNeighbour
	}
	return h
}
