package lab_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// option is a socket option of one family.
type option struct{ level, name int }

// Socket options that say the same in both families.
var (
	timeToLive = map[compile.Family]option{compile.IPv4: {unix.IPPROTO_IP, unix.IP_TTL}, compile.IPv6: {unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS}}
	reportAll  = map[compile.Family]option{compile.IPv4: {unix.IPPROTO_IP, unix.IP_RECVERR}, compile.IPv6: {unix.IPPROTO_IPV6, unix.IPV6_RECVERR}}
	discover   = map[compile.Family]option{compile.IPv4: {unix.IPPROTO_IP, unix.IP_MTU_DISCOVER}, compile.IPv6: {unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER}}
	pathMTU    = map[compile.Family]option{compile.IPv4: {unix.IPPROTO_IP, unix.IP_MTU}, compile.IPv6: {unix.IPPROTO_IPV6, unix.IPV6_MTU}}
)

// TestTimeExceeded sends a packet that has one hop left to a remote backend: the node is that hop, and says so about
// the packet as the client sent it.
func TestTimeExceeded(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Remote()...)
		for _, family := range families {
			conn := dial(t, c.Client, compile.UDP, netip.AddrPort{}, s.Frontend(c.Lab, compile.LoadBalancer, family))
			set(t, conn, reportAll[family], 1)
			set(t, conn, timeToLive[family], 1)
			if _, err := conn.AskWithin(time.Second); !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Errorf("%s: a packet with one hop left: got %v, want %v", family, err, syscall.EHOSTUNREACH)
			}
			set(t, conn, timeToLive[family], 3)
			askOn(t, conn)
		}
	})
}

// TestPathMTU sends a packet that fits the client's network and not the overlay: the node says what fits, and packets of
// that size get through.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{Pods: lab.Overlay}, func(t *testing.T, options lab.Options) {
		const overlay = 1450
		c := shared(t, options)
		s := c.serve(t, lab.AllKinds, c.Remote()...)
		headers := map[compile.Family]int{compile.IPv4: 28, compile.IPv6: 48}
		for _, family := range families {
			conn := dial(t, c.Client, compile.UDP, netip.AddrPort{}, s.Frontend(c.Lab, compile.LoadBalancer, family))
			askOn(t, conn)
			set(t, conn, discover[family], unix.IP_PMTUDISC_DO)
			set(t, conn, reportAll[family], 1)
			sendDatagram(t, conn, 1500-headers[family])
			if _, err := conn.Read(make([]byte, 2048)); !errors.Is(err, syscall.EMSGSIZE) {
				t.Fatalf("%s: a packet too big for the overlay: got %v, want %v", family, err, syscall.EMSGSIZE)
			}
			if mtu := get(t, conn, pathMTU[family]); mtu != overlay {
				t.Errorf("%s: the client was told an MTU of %d, want %d", family, mtu, overlay)
			}
			sendDatagram(t, conn, overlay-headers[family])
			if n, err := conn.Read(make([]byte, 2048)); err != nil {
				t.Errorf("%s: a packet that just fits: %v", family, err)
			} else if n == 0 {
				t.Errorf("%s: an empty answer", family)
			}
		}
	})
}

// sendDatagram sends size bytes, and leaves a second for the answer.
func sendDatagram(t *testing.T, conn *lab.Conn, size int) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(strings.Repeat("x", size))); err != nil {
		t.Fatal(err)
	}
}

// set sets an integer option of the connection's socket.
func set(t *testing.T, conn *lab.Conn, o option, value int) {
	t.Helper()
	control(t, conn, func(fd int) error { return unix.SetsockoptInt(fd, o.level, o.name, value) })
}

// get reads an integer option of the connection's socket.
func get(t *testing.T, conn *lab.Conn, o option) int {
	t.Helper()
	var value int
	control(t, conn, func(fd int) (err error) {
		value, err = unix.GetsockoptInt(fd, o.level, o.name)
		return err
	})
	return value
}

// control calls f with the connection's socket.
func control(t *testing.T, conn *lab.Conn, f func(fd int) error) {
	t.Helper()
	udp, ok := conn.Conn.(*net.UDPConn)
	if !ok {
		t.Fatal(fmt.Errorf("%T has no datagram socket", conn.Conn))
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	if failed != nil {
		t.Fatal(failed)
	}
}
