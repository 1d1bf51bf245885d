package lab_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// narrowMTU is what takes a narrow link, in labs whose other links take 1500 bytes.
const narrowMTU = 1400

// narrowTopologies are the labs in which a link is made narrow.
var narrowTopologies = []struct {
	name    string
	options lab.Options
	agent   []string
}{
	{name: "routed"},
	{name: "xdp", options: lab.Options{RealNICs: true}, agent: xdpNative},
}

// onNarrow runs a test in clusters of its own, for it changes their links.
func onNarrow(t *testing.T, test func(t *testing.T, c *cluster)) {
	t.Helper()
	t.Parallel()
	for _, topology := range narrowTopologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				test(t, own(t, options, topology.agent...))
			})
		})
	}
}

// onEachPath runs a test for every kind of frontend, family and place of a backend.
func onEachPath(t *testing.T, c *cluster, test func(t *testing.T, to netip.AddrPort, family compile.Family, backend *lab.Host)) {
	t.Helper()
	for _, backend := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
		s := c.serve(t, lab.AllKinds, backend)
		for _, kind := range frontendKinds {
			for _, family := range families {
				t.Run(fmt.Sprintf("backend %s/%s/%s", backend.Role, kind, family), func(t *testing.T) {
					test(t, s.Frontend(c.Lab, kind, family), family, backend)
				})
			}
		}
	}
}

// TestX04PathMTUBehindBackend has a narrow link in front of a backend: the router there tells clients, outside and in a
// pod, of packets that they have not sent, and they learn what fits.
func TestX04PathMTUBehindBackend(t *testing.T) {
	onNarrow(t, func(t *testing.T, c *cluster) {
		for router, backend := range map[*lab.Host]*lab.Host{c.Node1: c.Local()[0], c.Node2: c.Remote()[0]} {
			if err := router.Narrow(narrowMTU, backend); err != nil {
				t.Fatal(err)
			}
		}
		onEachPath(t, c, func(t *testing.T, to netip.AddrPort, family compile.Family, backend *lab.Host) {
			for _, from := range []*lab.Host{c.Client, c.Toolbox} {
				learnByTCP(t, from, to)
				learnByUDP(t, from, to, family)
			}
		})
		if counters(t, c).IcmpTranslated == 0 {
			t.Error("no error has been translated")
		}
	})
}

// TestX04PathMTUBeforeClient has a narrow link in front of a client outside: the router there tells the VIP, and the
// backend learns what fits.
func TestX04PathMTUBeforeClient(t *testing.T) {
	onNarrow(t, func(t *testing.T, c *cluster) {
		distant, err := c.AddDistant()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Client.Narrow(narrowMTU, distant); err != nil {
			t.Fatal(err)
		}
		onEachPath(t, c, func(t *testing.T, to netip.AddrPort, _ compile.Family, backend *lab.Host) {
			before := counters(t, c).IcmpTranslated
			if err := backend.ForgetPaths(); err != nil {
				t.Fatal(err)
			}
			exchange(t, distant, to)
			if counters(t, c).IcmpTranslated == before {
				t.Error("no error has been translated")
			}
		})
	})
}

// learnByTCP sends data by TCP and wants the sender to know of the narrow link then.
func learnByTCP(t *testing.T, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	if err := from.ForgetPaths(); err != nil {
		t.Fatal(err)
	}
	conn := exchange(t, from, to)
	if mtu := pathMTUOf(t, conn); mtu != narrowMTU {
		t.Errorf("%s to %s by TCP: the path MTU is %d, want %d", from.Role, to, mtu, narrowMTU)
	}
}

// exchange sends data both ways on a connection.
func exchange(t *testing.T, from *lab.Host, to netip.AddrPort) *lab.Conn {
	t.Helper()
	conn := dial(t, from, compile.TCP, netip.AddrPort{}, to)
	if err := conn.Exchange(256<<10, 256<<10, 20*time.Second); err != nil {
		t.Errorf("%s to %s by TCP: %v", from.Role, to, err)
	}
	return conn
}

// learnByUDP sends a datagram that does not fit, and one that does.
func learnByUDP(t *testing.T, from *lab.Host, to netip.AddrPort, family compile.Family) {
	t.Helper()
	if err := from.ForgetPaths(); err != nil {
		t.Fatal(err)
	}
	conn := dial(t, from, compile.UDP, netip.AddrPort{}, to)
	set(t, conn, discover[family], unix.IP_PMTUDISC_DO)
	set(t, conn, reportAll[family], 1)
	askOn(t, conn)
	sendDatagram(t, conn, 1450-ipAndUDP[family])
	if _, err := conn.Read(make([]byte, 2048)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("%s to %s by UDP: a packet too big for the link to the backend: got %v, want %v", from.Role, to, err, syscall.EMSGSIZE)
	}
	if mtu := get(t, conn, pathMTU[family]); mtu != narrowMTU {
		t.Errorf("%s to %s by UDP: the path MTU is %d, want %d", from.Role, to, mtu, narrowMTU)
	}
	askOn(t, conn)
}

// ipAndUDP is how long the headers of a datagram are.
var ipAndUDP = map[compile.Family]int{compile.IPv4: 28, compile.IPv6: 48}

// pathMTUOf returns the path MTU that a TCP connection uses.
func pathMTUOf(t *testing.T, conn *lab.Conn) int {
	t.Helper()
	return int(tcpInfoOf(t, conn).Pmtu)
}

// tcpInfoOf returns what the kernel says of a TCP connection.
func tcpInfoOf(t *testing.T, conn *lab.Conn) *unix.TCPInfo {
	t.Helper()
	raw, err := conn.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var option error
	if err := raw.Control(func(fd uintptr) {
		info, option = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil || option != nil {
		t.Fatal(err, option)
	}
	return info
}
