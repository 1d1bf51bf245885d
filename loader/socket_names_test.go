package loader

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/namespaces"
	"github.com/weir-lb/weir/maps"
)

// sum returns a counter of the hooks.
func (e socketEdge) sum(t *testing.T, of func(maps.PacketCounters) uint64) (sum uint64) {
	t.Helper()
	var perCPU []maps.PacketCounters
	if err := e.set.Counters.Lookup(uint32(0), &perCPU); err != nil {
		t.Fatal(err)
	}
	for _, one := range perCPU {
		sum += of(one)
	}
	return sum
}

// TestSeveralNamesOnOneSocket sends from one UDP socket to two frontends with the same two backends: each is served by a
// backend of its own, and answers under its name. A third finds none left, and keeps to that.
func TestSeveralNamesOnOneSocket(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	one, two := answer(t, "127.0.0.1", "one"), answer(t, "127.0.0.1", "two")
	edge.serve(t, socketService("a", compile.UDP, "10.96.0.1:53", one, two), socketService("b", compile.UDP, "10.96.0.2:53", one, two),
		socketService("c", compile.UDP, "10.96.0.3:53", one, two))
	enterCgroup(t, edge.cgroup)
	left := func() uint64 { return edge.sum(t, func(c maps.PacketCounters) uint64 { return c.SocketLeft }) }
	for range 20 {
		socket, err := net.ListenUDP("udp4", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		var answers []string
		for _, frontend := range []string{"10.96.0.1:53", "10.96.0.2:53", "10.96.0.1:53", "10.96.0.2:53"} {
			answers = append(answers, askUDP(t, socket, frontend))
		}
		if answers[0] != answers[2] || answers[1] != answers[3] || answers[0] == answers[1] {
			t.Errorf("answers of %v: each frontend is to keep a backend that the other has not", answers)
		}
		before := left()
		_, _ = socket.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort("10.96.0.3:53"))
		_, _ = socket.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort("10.96.0.3:53"))
		if now := left(); now != before+1 {
			t.Errorf("the third frontend was left %d times, want once and for all", now-before)
		}
	}
}

// askUDP asks a frontend, and expects its name on the answer.
func askUDP(t *testing.T, socket *net.UDPConn, frontend string) string {
	t.Helper()
	to, reply := netip.MustParseAddrPort(frontend), make([]byte, 10)
	socket.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := socket.WriteToUDPAddrPort([]byte("?"), to); err != nil {
		t.Fatal(err)
	}
	n, from, err := socket.ReadFromUDPAddrPort(reply)
	if err != nil || from != to {
		t.Fatalf("%s answers as %s: %v", frontend, from, err)
	}
	return string(reply[:n])
}

// TestOneClientPort connects from one bound port to two frontends with the same two backends: each connection gets a
// backend of its own. A third is left to the packet edges.
func TestOneClientPort(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	one, two := answer(t, "127.0.0.1", "one"), answer(t, "127.0.0.1", "two")
	for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP} {
		edge.serve(t, socketService("a", protocol, "10.96.0.1:80", one, two), socketService("b", protocol, "10.96.0.2:80", one, two),
			socketService("c", protocol, "10.96.0.3:80", one, two))
		network := map[compile.Protocol]string{compile.TCP: "tcp4", compile.UDP: "udp4"}[protocol]
		t.Run(network, func(t *testing.T) {
			enterCgroup(t, edge.cgroup)
			left := func() uint64 { return edge.sum(t, func(c maps.PacketCounters) uint64 { return c.SocketLeft }) }
			for port := 20000; port < 20010; port++ {
				var answers []string
				for _, frontend := range []string{"10.96.0.1:80", "10.96.0.2:80"} {
					socket, err := dialFrom(t, network, port, frontend)
					if err != nil {
						t.Fatal(err)
					}
					if got := peerName(socket); got != frontend {
						t.Errorf("the peer of %s is %s", frontend, got)
					}
					answers = append(answers, askOn(t, socket))
				}
				slices.Sort(answers)
				if !slices.Equal(answers, []string{"one", "two"}) {
					t.Errorf("answers are %v", answers)
				}
				before := left()
				_, _ = dialFrom(t, network, port, "10.96.0.3:80")
				if now := left(); now != before+1 {
					t.Errorf("the third connection was left %d times", now-before)
				}
			}
		})
	}
}

// dialFrom connects from a port that several sockets may have.
func dialFrom(t *testing.T, network string, port int, to string) (net.Conn, error) {
	t.Helper()
	dialer := net.Dialer{Timeout: 50 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}}
	if network == "udp4" {
		dialer.LocalAddr = &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	}
	dialer.Control = func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}
	socket, err := dialer.Dial(network, to)
	if err == nil {
		t.Cleanup(func() { socket.Close() })
	}
	return socket, err
}

// askOn asks on a connection.
func askOn(t *testing.T, socket net.Conn) string {
	t.Helper()
	reply := make([]byte, 10)
	socket.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := socket.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	n, err := socket.Read(reply)
	if err != nil {
		t.Fatal(err)
	}
	return string(reply[:n])
}

// TestMultipathTCP connects to a frontend with MPTCP.
func TestMultipathTCP(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	four, six := answer(t, "127.0.0.1", "four"), answer(t, "::1", "six")
	edge.serve(t, socketService("a", compile.TCP, "10.96.0.1:80", four), socketService("a6", compile.TCP, "[fd00:96::1]:80", six))
	enterCgroup(t, edge.cgroup)
	for frontend, want := range map[string]string{"10.96.0.1:80": "four", "[fd00:96::1]:80": "six"} {
		var dialer net.Dialer
		dialer.SetMultipathTCP(true)
		socket, err := dialer.DialContext(context.Background(), "tcp", frontend)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		if multipath, err := socket.(*net.TCPConn).MultipathTCP(); err != nil || !multipath {
			t.Skipf("the kernel does without MPTCP: %v", err)
		}
		if got := askOn(t, socket); got != want {
			t.Errorf("%s answers %q", frontend, got)
		}
		t.Logf("the peer is %s", peerName(socket))
	}
}

// TestFastOpen sends data with the SYN, by both ways there are.
func TestFastOpen(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	edge.serve(t, socketService("a", compile.TCP, "10.96.0.1:80", answer(t, "127.0.0.1", "four")))
	enterCgroup(t, edge.cgroup)
	to := &unix.SockaddrInet4{Addr: [4]byte{10, 96, 0, 1}, Port: 80}
	for name, begin := range map[string]func(fd int) error{
		"sendto": func(fd int) error { return unix.Sendto(fd, []byte("?"), unix.MSG_FASTOPEN, to) },
		"connect": func(fd int) error {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1), unix.Connect(fd, to),
				unix.Send(fd, []byte("?"), 0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := begin(fd); err != nil {
				t.Fatal(err)
			}
			reply := make([]byte, 10)
			n, err := unix.Read(fd, reply)
			if err != nil || string(reply[:n]) != "four" {
				t.Errorf("the answer is %q: %v", reply[:n], err)
			}
			peer, err := unix.Getpeername(fd)
			if at, is := peer.(*unix.SockaddrInet4); !is || at.Addr != to.Addr || at.Port != to.Port {
				t.Errorf("the peer is %+v: %v", peer, err)
			}
		})
	}
}

// TestLocalListener leaves a ClusterIP alone that is local and has a socket of its own, as NodeLocal DNSCache makes it;
// not so where the socket listens on any address, or on another port.
func TestLocalListener(t *testing.T) {
	here, err := namespaces.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	edge := newSocketEdge(t, Constants{NodeNetNS: here})
	// Addresses of the loopback network are local, and stand for those of nodelocaldns.
	backend, cache, any := answer(t, "127.0.0.1", "backend"), answer(t, "127.0.0.77", "cache"), answer(t, "0.0.0.0", "any")
	frontends := []netip.AddrPort{cache, netip.AddrPortFrom(cache.Addr(), any.Port())}
	var services []compile.Service
	for _, frontend := range frontends {
		for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP} {
			services = append(services, socketService("dns-"+frontend.String(), protocol, frontend.String(), backend))
		}
	}
	edge.serve(t, services...)
	if err := edge.set.Namespaces.Update(here, &maps.Namespace{}, ebpf.UpdateLock); err != nil {
		t.Fatal(err)
	}
	expect := func(what string, frontend netip.AddrPort, want string) {
		t.Helper()
		for _, network := range []string{"tcp", "udp", "sendto"} {
			if got := inCgroup(t, edge.cgroup, network, frontend.String()); got.Answer != want || got.Peer != frontend.String() {
				t.Errorf("%s by %s: %+v", what, network, got)
			}
		}
	}
	expect("an address that is not known to be local", frontends[0], "backend")
	vip := maps.LocalVIP{Cookie: here, Address: maps.AddressOf(cache.Addr())}
	if err := edge.set.LocalVIPs.Put(&vip, uint32(1)); err != nil {
		t.Fatal(err)
	}
	expect("a local one with a socket", frontends[0], "cache")
	expect("a port on which a socket listens on any address", frontends[1], "backend")
}

// TestSocketProbe refuses the connect by which weir status looks for the hooks, and nothing like it.
func TestSocketProbe(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	for address, refused := range map[string]bool{"0.0.0.1:1": true, "0.0.0.1:2": false, "0.0.0.2:1": false} {
		got := inCgroup(t, edge.cgroup, "udp", address)
		if (got.Errno == int(syscall.ECONNREFUSED) && got.Peer == "") != refused { // with a peer, connect() had succeeded
			t.Errorf("%s: %+v", address, got)
		}
	}
	if _, err := net.Dial("udp", "0.0.0.1:1"); errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("outside of the cgroup: %v", err)
	}
}

// TestReleasedSocketLeavesNothing closes sockets that have sent to several frontends, one of them left to the packet
// edges, and others whose backend has changed: no exchange of theirs stays in the map.
func TestReleasedSocketLeavesNothing(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	one, two := answer(t, "127.0.0.1", "one"), answer(t, "127.0.0.1", "two")
	edge.serve(t, socketService("a", compile.UDP, "10.96.0.1:53", one, two), socketService("b", compile.UDP, "10.96.0.2:53", one, two),
		socketService("c", compile.UDP, "10.96.0.3:53", one, two))
	enterCgroup(t, edge.cgroup)
	var sockets []*net.UDPConn
	for range 5 {
		socket, err := net.ListenUDP("udp4", nil)
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, socket)
		askUDP(t, socket, "10.96.0.1:53")
		askUDP(t, socket, "10.96.0.2:53")
		_, _ = socket.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort("10.96.0.3:53"))
		askUDP(t, socket, "10.96.0.1:53")
	}
	if n := edge.exchanges(t); n != 5*5 {
		t.Errorf("%d entries, want 2 for each exchange that has a backend, and 1 for one that has none: 25", n)
	}
	for i, socket := range sockets {
		if err := socket.Close(); err != nil {
			t.Fatal(err)
		}
		if n, want := edge.exchanges(t), 5*(4-i); n != want {
			t.Errorf("%d entries when %d sockets are closed, want %d", n, i+1, want)
		}
	}
}

// exchanges counts the entries of unconnected sockets.
func (e socketEdge) exchanges(t *testing.T) (n int) {
	t.Helper()
	var (
		key  maps.SocketKey
		flow maps.SocketFlow
	)
	entries := e.set.SocketFlows.Iterate()
	for entries.Next(&key, &flow) {
		n++
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}
