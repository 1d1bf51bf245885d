package devices

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// state is what is known of all devices of a network namespace.
type state struct {
	devices map[int]*device
	edges   *edges
}

// dumpTries bounds how often a listing is begun anew that was interrupted by changes.
const dumpTries = 10

// readAll reads everything anew (RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE).
func (s *state) readAll() error {
	links, err := dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC))
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	addresses, err := dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC))
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	gone := s.devices
	s.devices = map[int]*device{}
	for _, data := range links {
		if _, err := s.addLink(syscall.NetlinkMessage{Data: data}); err != nil {
			return err
		}
	}
	for index, old := range gone {
		if now := s.devices[index]; now == nil || now.namespace != old.namespace || now.mac != old.mac {
			s.edges.leave(index)
		}
	}
	for _, data := range addresses {
		if _, err := s.addAddress(data); err != nil {
			return err
		}
	}
	_, err = s.readRoutes()
	return err
}

// dump lists what there is of a kind. A listing during which things changed may have holes: it is begun anew.
func dump(request, answer int, about nl.NetlinkRequestData) ([][]byte, error) {
	var err error
	for range dumpTries {
		listing := nl.NewNetlinkRequest(request, unix.NLM_F_DUMP)
		listing.AddData(about)
		var found [][]byte
		found, err = listing.Execute(unix.NETLINK_ROUTE, uint16(answer))
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			return found, err
		}
	}
	return nil, err
}

// apply takes in a notification. It returns the devices that it is about.
func (s *state) apply(message syscall.NetlinkMessage) (touched []int, err error) {
	switch message.Header.Type {
	case unix.RTM_NEWLINK:
		return s.addLink(message)
	case unix.RTM_DELLINK:
		return s.removeLink(message)
	case unix.RTM_NEWADDR:
		return s.addAddress(message.Data)
	case unix.RTM_DELADDR:
		return s.removeAddress(message.Data)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return s.readRoutes()
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
		return []int{parseFilter(message.Data)}, nil
	default:
		return nil, nil
	}
}

// addLink takes in a device, new or changed.
func (s *state) addLink(message syscall.NetlinkMessage) ([]int, error) {
	now, err := parseLink(message)
	if now == nil || err != nil {
		return nil, err
	}
	old := s.devices[now.index]
	if old != nil {
		now.addresses, now.routes = old.addresses, old.routes
		if old.namespace != now.namespace {
			s.edges.leave(now.index)
		}
	}
	s.devices[now.index] = now
	// The other end of a veth hears nothing when this one has come into its namespace.
	if peer := s.devices[now.lower]; old == nil && now.kind == "veth" && now.namespace == hereNamespace &&
		peer != nil && peer.namespace != hereNamespace {
		return s.refresh([]int{now.index}, peer)
	}
	return []int{now.index}, nil
}

// removeLink takes in that a device is gone.
func (s *state) removeLink(message syscall.NetlinkMessage) ([]int, error) {
	gone, err := parseLink(message)
	if gone == nil || err != nil {
		return nil, err
	}
	delete(s.devices, gone.index)
	s.edges.leave(gone.index)
	touched := []int{gone.index}
	// The other end of a veth hears nothing when this one has left its namespace.
	for _, d := range inOrder(s.devices) {
		if d.kind == "veth" && d.lower == gone.index && d.namespace == hereNamespace {
			if touched, err = s.refresh(touched, d); err != nil {
				return touched, err
			}
		}
	}
	return touched, nil
}

// refresh reads a device anew, and adds it to those that are touched. If it has just gone, a notification follows.
func (s *state) refresh(touched []int, d *device) ([]int, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)
	about := nl.NewIfInfomsg(unix.AF_UNSPEC)
	about.Index = int32(d.index)
	request.AddData(about)
	found, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if errors.Is(err, unix.ENODEV) || err == nil && len(found) == 0 {
		return touched, nil
	}
	if err != nil {
		return touched, fmt.Errorf("read about %s: %w", d.name, err)
	}
	now, err := parseLink(syscall.NetlinkMessage{Data: found[0]})
	if now == nil || err != nil {
		return touched, err
	}
	now.addresses, now.routes = d.addresses, d.routes
	if now.namespace != d.namespace {
		s.edges.leave(d.index)
	}
	s.devices[d.index] = now
	return append(touched, d.index), nil
}

// addAddress takes in an address, new or changed. It keeps its place in the order.
func (s *state) addAddress(data []byte) ([]int, error) {
	index, now, err := parseAddress(data)
	d := s.devices[index]
	if err != nil || d == nil || !now.prefix.IsValid() {
		return nil, err
	}
	same := func(old address) bool { return old.prefix == now.prefix }
	addresses := slices.Clone(d.addresses)
	if at := slices.IndexFunc(addresses, same); at >= 0 {
		addresses[at] = now
	} else {
		addresses = append(addresses, now)
	}
	d.addresses = addresses
	return []int{index}, nil
}

// removeAddress takes in that an address is gone.
func (s *state) removeAddress(data []byte) ([]int, error) {
	index, gone, err := parseAddress(data)
	d := s.devices[index]
	if err != nil || d == nil {
		return nil, err
	}
	d.addresses = slices.DeleteFunc(slices.Clone(d.addresses), func(a address) bool { return a.prefix == gone.prefix })
	return []int{index}, nil
}

// readRoutes reads all default routes anew, those of the tables that rules lead to too.
func (s *state) readRoutes() ([]int, error) {
	routes := map[int][]defaultRoute{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		every := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		err := netlink.RouteListFilteredIter(family, every, netlink.RT_FILTER_TABLE, func(route netlink.Route) bool {
			addRoute(routes, route, family == unix.AF_INET6)
			return true
		})
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
	}
	var touched []int
	for _, d := range inOrder(s.devices) {
		if !slices.Equal(d.routes, routes[d.index]) {
			d.routes = routes[d.index]
			touched = append(touched, d.index)
		}
	}
	return touched, nil
}

// addRoute notes a route if it is a default route that leads somewhere.
func addRoute(routes map[int][]defaultRoute, route netlink.Route, ipv6 bool) {
	if route.Type != 0 && route.Type != unix.RTN_UNICAST {
		return
	}
	if route.Dst != nil {
		if ones, _ := route.Dst.Mask.Size(); ones != 0 {
			return
		}
	}
	source, _ := netip.AddrFromSlice(route.Src)
	found := defaultRoute{
		ipv6: ipv6, table: route.Table, metric: min(route.Priority, math.MaxInt32), source: source.Unmap(),
	}
	hops := []*netlink.NexthopInfo{{LinkIndex: route.LinkIndex, Gw: route.Gw}}
	for _, hop := range append(hops, route.MultiPath...) {
		if hop.LinkIndex == 0 {
			continue
		}
		router, _ := netip.AddrFromSlice(hop.Gw)
		found.router = router.Unmap()
		routes[hop.LinkIndex] = append(routes[hop.LinkIndex], found)
	}
}
