package devices

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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

// TestNeighbours keeps the next hops toward backends resolved, whoever is there: gateways and backends on the link, of
// both families. What it made it gives up, also after a restart. What somebody else has said stays.
func TestNeighbours(t *testing.T) {
	w, set, attacher := newWorld(t), newSet(t), newFakeAttacher()
	other := w.newPod()
	eth := w.veth("eth0", other)
	w.addAddress("eth0", "192.0.2.1/24", "2001:db8::1/64")
	far, err := netlink.NewHandleAt(other)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	end, err := far.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"192.0.2.2/24", "192.0.2.3/24", "192.0.2.4/24", "2001:db8::2/64"} {
		if err := far.AddrAdd(end, w.address("eth0", prefix)); err != nil {
			t.Fatal(err)
		}
	}
	if err := far.LinkSetUp(end); err != nil {
		t.Fatal(err)
	}
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
	addresses := func(texts ...string) (all []netip.Addr) {
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}

	m := w.run(Options{Set: set, Attacher: attacher})
	m.SetBackends(addresses("10.1.2.11", "10.1.2.12", "fd00:10:1:2::11", "192.0.2.3", "192.0.2.4", "203.0.113.1"))
	managed(t, eth, "192.0.2.2", true)
	managed(t, eth, "2001:db8::2", true)
	managed(t, eth, "192.0.2.3", true)
	if entry, protocol := neighbourOn(t, eth, "192.0.2.4"); entry.State != netlink.NUD_PERMANENT || protocol == neighbourProtocol {
		t.Errorf("an entry that somebody made is now %+v of protocol %d", entry, protocol)
	}
	m.stop()

	again := w.run(Options{Set: set, Attacher: attacher})
	again.SetBackends(addresses("10.1.2.11"))
	managed(t, eth, "192.0.2.3", false)
	managed(t, eth, "2001:db8::2", false)
	managed(t, eth, "192.0.2.2", true)
	again.SetBackends(addresses("192.0.2.3"))
	managed(t, eth, "192.0.2.2", false)
	managed(t, eth, "192.0.2.3", true)
	again.SetBackends(nil)
	managed(t, eth, "192.0.2.3", false)
	again.SetBackends(addresses("192.0.2.3"))
	managed(t, eth, "192.0.2.3", true)
	again.stop()

	if err := ForgetNeighbours(); err != nil {
		t.Fatal(err)
	}
	if entry, protocol := neighbourOn(t, eth, "192.0.2.3"); entry.FlagsExt&netlink.NTF_EXT_MANAGED != 0 || protocol == neighbourProtocol {
		t.Errorf("left managed: %+v of protocol %d", entry, protocol)
	}
}
