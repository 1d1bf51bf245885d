package conntrack_test

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/conntrack"
)

// track has the kernel track a connection whose answers come from a backend.
func track(t *testing.T, protocol uint8, client, frontend, backend string) conntrack.Connection {
	t.Helper()
	from, to, server := netip.MustParseAddrPort(client), netip.MustParseAddrPort(frontend), netip.MustParseAddrPort(backend)
	family := unix.AF_INET6
	if from.Addr().Is4() {
		family = unix.AF_INET
	}
	tuple := func(source, destination netip.AddrPort) netlink.IPTuple {
		return netlink.IPTuple{
			Protocol: protocol,
			SrcIP:    net.IP(source.Addr().AsSlice()), SrcPort: source.Port(),
			DstIP: net.IP(destination.Addr().AsSlice()), DstPort: destination.Port(),
		}
	}
	flow := &netlink.ConntrackFlow{FamilyType: uint8(family), Forward: tuple(from, to), Reverse: tuple(server, from), TimeOut: 60}
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(family), flow); err != nil {
		t.Fatal(err)
	}
	return conntrack.Connection{
		Original: conntrack.Tuple{Source: from, Destination: to, Protocol: protocol},
		Reply:    conntrack.Tuple{Source: server, Destination: from, Protocol: protocol},
	}
}

func TestEach(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and with it the namespace
	here, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	want := []conntrack.Connection{
		track(t, unix.IPPROTO_TCP, "192.0.2.10:40000", "10.96.0.1:80", "10.1.1.2:8080"),
		track(t, unix.IPPROTO_UDP, "192.0.2.10:40000", "10.96.0.1:53", "10.1.1.2:5353"),
		track(t, unix.IPPROTO_TCP, "[2001:db8::10]:40000", "[fd00::1]:80", "[fd00:1::2]:8080"),
	}
	var got []conntrack.Connection
	if err := conntrack.Each(func(c conntrack.Connection) bool { got = append(got, c); return true }); err != nil {
		t.Fatal(err)
	}
	options := []cmp.Option{
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmpopts.IgnoreFields(conntrack.Connection{}, "Status"),
		cmpopts.SortSlices(func(a, b conntrack.Connection) bool {
			return a.Original.Destination.Compare(b.Original.Destination) < 0
		}),
	}
	if diff := cmp.Diff(want, got, options...); diff != "" {
		t.Error(diff)
	}
	count := 0
	if err := conntrack.Each(func(conntrack.Connection) bool { count++; return false }); err != nil || count != 1 {
		t.Errorf("told to stop, it goes on: %d (%v)", count, err)
	}
}
