package devices

import (
	"maps"
	"net/netip"

	weirmaps "github.com/weir-lb/weir/maps"
)

// A router at the end of a device is where answers go to clients that came by it, and to whom no route leads there
// (bpf/back.h). The kernel does not know that it is used: it is kept resolved as a next hop toward backends is.

// router returns the router at the other end of the device, which default routes of any table name; invalid if none does.
func (d *device) router(ipv6 bool) netip.Addr {
	var best defaultRoute
	for _, r := range d.routes {
		if r.ipv6 == ipv6 && r.router.IsValid() && (!best.router.IsValid() || r.better(best)) {
			best = r
		}
	}
	return best.router
}

// routersOn returns the routers at the ends of those devices that are chosen.
func routersOn(devices map[int]*device, chosen map[int]bool) map[nextHop]bool {
	found := map[nextHop]bool{}
	for index, d := range devices {
		if !chosen[index] {
			continue
		}
		for _, ipv6 := range []bool{false, true} {
			if router := d.router(ipv6); router.IsValid() {
				found[nextHop{int32(index), weirmaps.AddressOf(router)}] = true
			}
		}
	}
	return found
}

// followRouters takes in which routers there are now.
func (n *neighbours) followRouters(routers map[nextHop]bool) {
	for hop := range n.routers {
		n.release(hop)
	}
	for hop := range routers {
		n.hops[hop]++
	}
	n.routers = maps.Clone(routers)
}

// release says that a hop leads to one less.
func (n *neighbours) release(hop nextHop) {
	if n.hops[hop]--; n.hops[hop] == 0 {
		delete(n.hops, hop)
	}
}
