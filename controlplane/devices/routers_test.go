package devices

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// TestRouter chooses among the default routes of a device: those of the main table first, then by metric.
func TestRouter(t *testing.T) {
	route := func(table, metric int, router string) defaultRoute {
		r := defaultRoute{table: table, metric: metric}
		if router != "" {
			r.router = netip.MustParseAddr(router)
			r.ipv6 = r.router.Is6()
		}
		return r
	}
	for name, test := range map[string]struct {
		routes []defaultRoute
		want   string
	}{
		"of a rule's table":         {[]defaultRoute{route(100, 0, "192.0.2.1")}, "192.0.2.1"},
		"of the main table first":   {[]defaultRoute{route(100, 0, "192.0.2.1"), route(unix.RT_TABLE_MAIN, 900, "192.0.2.2")}, "192.0.2.2"},
		"of the better metric":      {[]defaultRoute{route(100, 20, "192.0.2.1"), route(200, 10, "192.0.2.2")}, "192.0.2.2"},
		"of the first table":        {[]defaultRoute{route(200, 0, "192.0.2.2"), route(100, 0, "192.0.2.1")}, "192.0.2.1"},
		"nobody, but on the link":   {[]defaultRoute{route(unix.RT_TABLE_MAIN, 0, "")}, ""},
		"of the other family alone": {[]defaultRoute{route(unix.RT_TABLE_MAIN, 0, "2001:db8::1")}, ""},
	} {
		d := &device{routes: test.routes}
		if got := d.router(false); got.IsValid() && got.String() != test.want || !got.IsValid() && test.want != "" {
			t.Errorf("%s: %s, want %q", name, got, test.want)
		}
	}
}

// TestFollowsRouters writes the router of each uplink, also of one that only a rule's table names, keeps it resolved, and
// forgets it when its route goes. Such a route makes nothing an uplink.
func TestFollowsRouters(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	other := w.newPod()
	eth, pod := w.veth("eth0", other), w.veth("veth1", w.newPod())
	w.addAddress("eth0", "192.0.2.1/24", "2001:db8::1/64")
	w.addFar(other, "192.0.2.2/24", "2001:db8::2/64")
	m := w.run(Options{Set: set, Attacher: attacher})
	m.ChangeBackends(nil)
	routes := []*netlink.Route{
		{LinkIndex: eth.Attrs().Index, Table: 100, Dst: everywhere(false), Gw: netip.MustParseAddr("192.0.2.2").AsSlice()},
		{LinkIndex: eth.Attrs().Index, Priority: 2000, Dst: everywhere(true), Gw: netip.MustParseAddr("2001:db8::2").AsSlice()},
		{LinkIndex: pod.Attrs().Index, Table: 101, Dst: everywhere(false), Scope: netlink.SCOPE_LINK},
	}
	for _, r := range routes {
		if err := netlink.RouteAdd(r); err != nil {
			t.Fatal(err)
		}
	}
	hasDevice(t, set, eth, func(d weirmaps.Device) bool {
		return d.RouterIpv4.Addr().String() == "192.0.2.2" && d.RouterIpv6.Addr().String() == "2001:db8::2" && d.Mtu == 1500
	})
	managed(t, eth, "192.0.2.2", true)
	managed(t, eth, "2001:db8::2", true)
	hasDevice(t, set, pod, func(d weirmaps.Device) bool { return d.Edge == weirmaps.EdgePod })

	if err := netlink.RouteDel(routes[0]); err != nil {
		t.Fatal(err)
	}
	hasDevice(t, set, eth, func(d weirmaps.Device) bool { return d.RouterIpv4 == weirmaps.Address{} })
	managed(t, eth, "192.0.2.2", false)
}

// everywhere is where default routes lead.
func everywhere(ipv6 bool) *net.IPNet {
	if ipv6 {
		return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
}
