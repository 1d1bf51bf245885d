package lab_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestX12PacketsAreCut has a narrow link between the nodes, and a client whose kernel lets routers cut what it sends.
// Datagrams that do not fit there, whole or in fragments, reach a backend behind it, and nobody is told of an MTU. What
// comes back is the other node's affair.
func TestX12PacketsAreCut(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{RealNICs: true}, func(t *testing.T, options lab.Options) {
		c := own(t, options, xdpNative...)
		for host, device := range map[*lab.Host]string{c.Node1: "eth1", c.Node2: "eth0"} {
			if _, err := host.Run("", "ip", "link", "set", device, "mtu", strconv.Itoa(narrowMTU)); err != nil {
				t.Fatal(err)
			}
		}
		s := c.serve(t, lab.AllKinds, c.Remote()[0])
		for _, kind := range frontendKinds {
			for _, size := range []int{1450, 8_000} {
				t.Run(fmt.Sprintf("%s/%d", kind, size), func(t *testing.T) {
					exchangeCut(t, c, s.Frontend(c.Lab, kind, compile.IPv4), size)
				})
			}
		}
	})
}

// exchangeCut sends datagrams until one comes back: the first may only tell the backend of the path MTU.
func exchangeCut(t *testing.T, c *cluster, to netip.AddrPort, size int) {
	t.Helper()
	conn := dial(t, c.Client, compile.UDP, netip.AddrPort{}, to)
	set(t, conn, discover[compile.IPv4], unix.IP_PMTUDISC_DONT)
	askOn(t, conn) // so that the neighbour is known
	before := counters(t, c)
	exchangeLargeOn(t, conn, size)
	after := counters(t, c)
	if after.PacketCut == before.PacketCut {
		t.Error("no packet has been cut")
	}
	if after.IcmpTooBig != before.IcmpTooBig {
		t.Error("somebody has been told of a path MTU")
	}
}
