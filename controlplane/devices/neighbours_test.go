package devices

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// neighbourOn returns the kernel's entry for an address, without the code under test but for the protocol's place.
func neighbourOn(t *testing.T, link netlink.Link, addr string) (found netlink.Neigh, protocol byte) {
	t.Helper()
	entries, err := netlink.NeighList(link.Attrs().Index, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IP.String() == addr {
			found = entry
		}
	}
	messages, err := dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{})
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range messages {
		if entry, err := netlink.NeighDeserialize(message); err == nil && entry.IP.String() == addr {
			protocol = protocolOf(message)
		}
	}
	return found, protocol
}

// managed waits until an entry is resolved and managed by us, or not managed.
func managed(t *testing.T, link netlink.Link, addr string, want bool) {
	t.Helper()
	eventually(t, func() error {
		entry, protocol := neighbourOn(t, link, addr)
		is := entry.FlagsExt&netlink.NTF_EXT_MANAGED != 0 && protocol == neighbourProtocol
		if is != want || want && entry.State&netlink.NUD_REACHABLE == 0 {
			return fmt.Errorf("%s: entry %+v of protocol %d, want it managed: %t", addr, entry, protocol, want)
		}
		return nil
	})
}

// come returns backends that come.
func come(addresses ...string) map[weirmaps.Address]bool {
	moves := map[weirmaps.Address]bool{}
	for _, address := range addresses {
		moves[weirmaps.AddressOf(netip.MustParseAddr(address))] = true
	}
	return moves
}

// move returns backends with whether they come.
func move(pairs ...any) map[weirmaps.Address]bool {
	moves := map[weirmaps.Address]bool{}
	for i := 0; i < len(pairs); i += 2 {
		moves[weirmaps.AddressOf(netip.MustParseAddr(pairs[i].(string)))] = pairs[i+1].(bool)
	}
	return moves
}

// TestNeighbours keeps the next hops toward backends resolved, whoever is there: gateways and backends on the link, of
// both families. What it made it gives up, also after a restart. What somebody else has said stays.
func TestNeighbours(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	other := w.newPod()
	eth := w.veth("eth0", other)
	w.addAddress("eth0", "192.0.2.1/24", "2001:db8::1/64")
	w.addFar(other, "192.0.2.2/24", "192.0.2.3/24", "192.0.2.4/24", "2001:db8::2/64")
	for to, via := range map[string]string{"10.1.2.0/24": "192.0.2.2", "fd00:10:1:2::/64": "2001:db8::2"} {
		_, network, _ := net.ParseCIDR(to)
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: network, Gw: net.ParseIP(via)}); err != nil {
			t.Fatal(err)
		}
	}
	said := &netlink.Neigh{LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP("192.0.2.4"), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 4}}
	if err := netlink.NeighSet(said); err != nil {
		t.Fatal(err)
	}
	m := w.run(Options{Set: set, Attacher: attacher})
	m.ChangeBackends(come("10.1.2.11", "10.1.2.12", "fd00:10:1:2::11", "192.0.2.3", "192.0.2.4", "203.0.113.1"))
	managed(t, eth, "192.0.2.2", true)
	managed(t, eth, "2001:db8::2", true)
	managed(t, eth, "192.0.2.3", true)
	if entry, protocol := neighbourOn(t, eth, "192.0.2.4"); entry.State != netlink.NUD_PERMANENT || protocol == neighbourProtocol {
		t.Errorf("an entry that somebody made is now %+v of protocol %d", entry, protocol)
	}
	m.stop()

	again := w.run(Options{Set: set, Attacher: attacher})
	again.ChangeBackends(come("10.1.2.11"))
	managed(t, eth, "192.0.2.3", false)
	managed(t, eth, "2001:db8::2", false)
	managed(t, eth, "192.0.2.2", true)
	again.ChangeBackends(move("192.0.2.3", true, "10.1.2.11", false))
	managed(t, eth, "192.0.2.2", false)
	managed(t, eth, "192.0.2.3", true)
	again.ChangeBackends(move("192.0.2.3", false))
	managed(t, eth, "192.0.2.3", false)
	again.ChangeBackends(come("192.0.2.3"))
	managed(t, eth, "192.0.2.3", true)
	again.stop()

	if err := ForgetNeighbours(); err != nil {
		t.Fatal(err)
	}
	if entry, protocol := neighbourOn(t, eth, "192.0.2.3"); entry.FlagsExt&netlink.NTF_EXT_MANAGED != 0 || protocol == neighbourProtocol {
		t.Errorf("left managed: %+v of protocol %d", entry, protocol)
	}
}

// TestNeighboursFollowRoutes manages other next hops when routes have changed, though no backend has come or left.
func TestNeighboursFollowRoutes(t *testing.T) {
	w, set := newWorld(t), newSet(t)
	eth := w.veth("eth0", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24")
	hops := func(addresses ...string) {
		t.Helper()
		eventually(t, func() error {
			for _, address := range []string{"192.0.2.2", "192.0.2.3", "192.0.2.4"} {
				entry, protocol := neighbourOn(t, eth, address)
				is := entry.FlagsExt&netlink.NTF_EXT_MANAGED != 0 && protocol == neighbourProtocol
				if want := slices.Contains(addresses, address); is != want {
					return fmt.Errorf("%s is managed: %t, want %v", address, is, addresses)
				}
			}
			return nil
		})
	}
	route := func(to, via string) *netlink.Route {
		_, network, _ := net.ParseCIDR(to)
		return &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: network, Gw: net.ParseIP(via)}
	}
	change := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m := w.run(Options{Set: set, Attacher: newFakeAttacher()})
	m.ChangeBackends(come("10.1.2.11", "10.1.3.11"))
	hops()
	change(netlink.RouteAdd(route("10.1.0.0/16", "192.0.2.2"))) // the CNI is late
	hops("192.0.2.2")
	change(netlink.RouteAdd(route("10.1.3.11/32", "192.0.2.3")))
	hops("192.0.2.2", "192.0.2.3")
	change(netlink.RouteReplace(route("10.1.0.0/16", "192.0.2.4")))
	hops("192.0.2.3", "192.0.2.4")
	change(netlink.RouteDel(route("10.1.3.11/32", "192.0.2.3")))
	hops("192.0.2.4")
	change(netlink.LinkSetDown(eth)) // its routes go without a word
	change(netlink.LinkSetUp(eth))
	hops()
	m.stop()
}

// routesOf is a router that has a gateway for each network of 256 addresses, and counts what it is asked.
type routesOf struct{ asked int }

func (r *routesOf) toward(to netip.Addr) (hop nextHop, found bool, err error) {
	r.asked++
	address := to.As4()
	address[3] = 1
	return nextHop{ifindex: 1, addr: weirmaps.AddressOf(netip.AddrFrom4(address))}, true, nil
}

// TestNeighboursAskForWhatChanged counts the routes asked for: one endpoint's change costs one, of however many backends.
func TestNeighboursAskForWhatChanged(t *testing.T) {
	newWorld(t)
	n, err := newNeighbours(zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	routes := &routesOf{}
	n.routes = routes
	asked := func(what string, want int) {
		t.Helper()
		routes.asked = 0
		if err := n.round(n.take()); err != nil && !errors.Is(err, unix.ENODEV) {
			t.Fatal(err)
		}
		if routes.asked != want {
			t.Errorf("%s: asked for %d routes, want %d", what, routes.asked, want)
		}
	}
	const all = 20000
	backends := map[weirmaps.Address]bool{}
	numbered := func(i int) weirmaps.Address {
		return weirmaps.AddressOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	for i := range all {
		backends[numbered(i)] = true
	}
	n.follow(backends)
	asked("nothing is known of devices", 0)
	n.use(map[int]bool{1: true}, nil, nil)
	asked("the first round", all)
	n.follow(move("10.0.0.7", false, "10.0.0.8", false, "10.99.0.1", true))
	asked("one comes, two leave", 1)
	n.use(map[int]bool{1: true}, nil, []int{7})
	asked("something happens to another device", 0)
	n.hear(func(news *news) bool {
		news.prefixes = map[netip.Prefix]struct{}{netip.MustParsePrefix("10.0.4.0/24"): {}, netip.MustParsePrefix("10.0.3.3/32"): {}, netip.MustParsePrefix("10.77.0.1/32"): {}}
		return true
	})
	asked("routes have changed", 256+1)
	n.use(map[int]bool{1: true}, nil, []int{1})
	asked("something happens to the device", all-1)
	if len(n.hops) != all/256+2 {
		t.Errorf("%d next hops are known", len(n.hops))
	}
	for i := range all {
		n.follow(map[weirmaps.Address]bool{numbered(i): false})
	}
	n.follow(move("10.99.0.1", false))
	asked("all leave", 0)
	if len(n.hops)+len(n.backends)+len(n.managed) > 0 {
		t.Errorf("left over: %d next hops, %d backends, %d managed", len(n.hops), len(n.backends), len(n.managed))
	}
}
