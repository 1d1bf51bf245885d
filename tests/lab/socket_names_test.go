package lab_test

import (
	"context"
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

// onSocketEdge runs a test with the socket edge, bare and with a real node's netfilter, for a process of node1 and for a pod.
func onSocketEdge(t *testing.T, test func(t *testing.T, c *cluster, from *lab.Host)) {
	t.Helper()
	onEachNode(t, socketLab, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		for _, from := range []*lab.Host{c.Node1, c.Toolbox} {
			t.Run(from.Role, func(t *testing.T) { test(t, c, from) })
		}
	})
}

// socketOptions say how a socket is made that is not of the usual kind.
type socketOptions struct {
	wildcard  bool // it is an IPv6 socket, bound to [::], also for IPv4
	multipath bool
	fastOpen  bool
}

// connectBy connects with a socket of some kind.
func connectBy(t *testing.T, from *lab.Host, network string, to netip.AddrPort, options socketOptions) net.Conn {
	t.Helper()
	dialer := net.Dialer{Timeout: 3 * time.Second, Control: func(network, address string, raw syscall.RawConn) error {
		err := from.ControlSocket(network, address, raw)
		if options.fastOpen {
			err = errors.Join(err, raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
			}))
		}
		return err
	}}
	dialer.SetMultipathTCP(options.multipath)
	if options.wildcard {
		dialer.LocalAddr = map[string]net.Addr{"tcp": &net.TCPAddr{IP: net.IPv6zero}, "udp": &net.UDPAddr{IP: net.IPv6zero}}[network]
	}
	var conn net.Conn
	if err := from.Do(func() (err error) { conn, err = dialer.Dial(network, to.String()); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// whoIs asks on a connection, and returns the server's role.
func whoIs(t *testing.T, conn net.Conn) string {
	t.Helper()
	if _, err := conn.Write([]byte("who\n")); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 500)
	n, err := conn.Read(reply)
	if err != nil {
		t.Fatal(err)
	}
	return firstWord(string(reply[:n]))
}

func firstWord(text string) string {
	word, _, _ := strings.Cut(text, " ")
	return word
}

// onFD calls f with a socket.
func onFD(t *testing.T, conn any, f func(fd int) error) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := errors.Join(raw.Control(func(fd uintptr) { failed = f(int(fd)) }), failed); err != nil {
		t.Fatal(err)
	}
}

// peerOf asks the kernel for the name of a socket's peer, and for the family of the socket.
func peerOf(t *testing.T, conn net.Conn) (peer netip.AddrPort, family int) {
	t.Helper()
	onFD(t, conn, func(fd int) error {
		name, err := unix.Getpeername(fd)
		switch name := name.(type) {
		case *unix.SockaddrInet4:
			peer, family = netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port)), unix.AF_INET
		case *unix.SockaddrInet6:
			peer, family = netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), uint16(name.Port)), unix.AF_INET6
		}
		return err
	})
	return peer, family
}

// TestSocketNames: getpeername() and recvmsg() tell the address that the application had asked for, on sockets of IPv4, of
// IPv6 and of IPv4 on IPv6 ones.
func TestSocketNames(t *testing.T) {
	t.Parallel()
	onSocketEdge(t, func(t *testing.T, c *cluster, from *lab.Host) {
		s := c.serve(t, nil, c.Local()[0], c.Remote()[0])
		for _, mapped := range []bool{false, true} {
			for _, family := range families {
				to := s.Frontend(c.Lab, compile.ClusterIP, family)
				for _, network := range []string{"tcp", "udp"} {
					before := counters(t, c).SocketTranslated
					conn := connectBy(t, from, network, to, socketOptions{wildcard: mapped})
					if role := whoIs(t, conn); role != "web1" && role != "web3" {
						t.Errorf("%s %s is answered by %s", network, to, role)
					}
					if counters(t, c).SocketTranslated == before {
						t.Errorf("%s %s is not served at the socket edge", network, to)
					}
					peer, socketFamily := peerOf(t, conn)
					if peer != to || mapped && socketFamily != unix.AF_INET6 {
						t.Errorf("%s %s: the peer of a socket of family %d is %s", network, to, socketFamily, peer)
					}
				}
				socket := listenUDP(t, from, mapped, family)
				if role := askFrom(t, socket, to); role != "web1" && role != "web3" {
					t.Errorf("%s by sendto is answered by %s", to, role)
				}
			}
		}
	})
}

// listenUDP makes a UDP socket that is not connected; a mapped one is of IPv6, also for IPv4.
func listenUDP(t *testing.T, from *lab.Host, mapped bool, family compile.Family) *net.UDPConn {
	t.Helper()
	network := map[compile.Family]string{compile.IPv4: "udp4", compile.IPv6: "udp6"}[family]
	if mapped {
		network = "udp"
	}
	var socket net.PacketConn
	listen := net.ListenConfig{Control: from.ControlSocket}
	if err := from.Do(func() (err error) { socket, err = listen.ListenPacket(t.Context(), network, ":0"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket.(*net.UDPConn)
}

// askFrom asks a frontend on a socket that is not connected, and expects its name on the answer. It returns the server.
func askFrom(t *testing.T, socket *net.UDPConn, to netip.AddrPort) string {
	t.Helper()
	if err := socket.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.WriteToUDPAddrPort([]byte("who\n"), to); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 500)
	n, by, err := socket.ReadFromUDPAddrPort(reply)
	if by = netip.AddrPortFrom(by.Addr().Unmap(), by.Port()); err != nil || by != to {
		t.Errorf("%s answers under the name %s (%v)", to, by, err)
	}
	return firstWord(string(reply[:n]))
}

// TestSeveralVIPsOnOneSocket sends from one UDP socket to two services with the same backends: each answers under its name,
// and keeps its backend.
func TestSeveralVIPsOnOneSocket(t *testing.T) {
	t.Parallel()
	onSocketEdge(t, func(t *testing.T, c *cluster, from *lab.Host) {
		pods := []*lab.Host{c.Local()[0], c.Remote()[0]}
		one, two := c.serve(t, nil, pods...), c.serve(t, nil, pods...)
		for _, family := range families {
			for range 5 {
				socket := listenUDP(t, from, false, family)
				first, second := one.Frontend(c.Lab, compile.ClusterIP, family), two.Frontend(c.Lab, compile.ClusterIP, family)
				a, b := askFrom(t, socket, first), askFrom(t, socket, second)
				if a == b {
					t.Errorf("both have backend %s: answers could not be told apart", a)
				}
				if again := askFrom(t, socket, first); again != a {
					t.Errorf("%s is answered by %s, then by %s", first, a, again)
				}
			}
		}
	})
}

// TestMultipathTCP: sockets of MPTCP are served as those of TCP are.
func TestMultipathTCP(t *testing.T) {
	t.Parallel()
	onSocketEdge(t, func(t *testing.T, c *cluster, from *lab.Host) {
		s := c.serve(t, nil, c.Remote()[0])
		for _, family := range families {
			conn := connectBy(t, from, "tcp", s.Frontend(c.Lab, compile.ClusterIP, family), socketOptions{multipath: true})
			if multipath, err := conn.(*net.TCPConn).MultipathTCP(); err != nil || !multipath {
				t.Skipf("the kernel does without MPTCP: %v", err)
			}
			if role := whoIs(t, conn); role != "web3" {
				t.Errorf("%s answers", role)
			}
		}
	})
}

// TestFastOpen: data goes with the SYN to the backend, once that has given a cookie.
func TestFastOpen(t *testing.T) {
	t.Parallel()
	c := own(t, lab.Options{Cgroups: true, NoServers: true}, socketEdge...)
	pod := c.Remote()[0]
	const everyListener = "1027" // clients, servers, and listeners that have not asked for it
	for _, host := range []*lab.Host{pod, c.Node1, c.Toolbox} {
		if err := host.Sysctl("net/ipv4/tcp_fastopen", everyListener); err != nil {
			t.Fatal(err)
		}
	}
	err := pod.Do(func() error {
		servers, err := lab.Serve(pod.Role)
		t.Cleanup(func() { servers.Close() })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := c.serve(t, nil, pod)
	for _, from := range []*lab.Host{c.Node1, c.Toolbox} {
		for _, family := range families {
			t.Run(fmt.Sprintf("%s/%s", from.Role, family), func(t *testing.T) {
				testFastOpen(t, from, s.Frontend(c.Lab, compile.ClusterIP, family), pod)
			})
		}
	}
}

func testFastOpen(t *testing.T, from *lab.Host, to netip.AddrPort, pod *lab.Host) {
	t.Helper()
	withSYN := false
	for range 3 {
		conn := connectBy(t, from, "tcp", to, socketOptions{fastOpen: true})
		if role := whoIs(t, conn); role != pod.Role {
			t.Errorf("%s answers", role)
		}
		if peer, _ := peerOf(t, conn); peer != to {
			t.Errorf("the peer of %s is %s", to, peer)
		}
		onFD(t, conn, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			const synData = 32 // TCPI_OPT_SYN_DATA
			withSYN = err == nil && info.Options&synData != 0
			return err
		})
		conn.Close()
	}
	if !withSYN {
		t.Error("no data went with the SYN")
	}
}

// TestN08_BindOfNodePort: a process of the node cannot take a port that is an active NodePort; a pod can, and the node can
// take others.
func TestN08_BindOfNodePort(t *testing.T) {
	t.Parallel()
	onEachNode(t, socketLab, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		s := c.serve(t, []compile.FrontendKind{compile.NodePort}, c.Local()[0])
		for _, address := range []string{"0.0.0.0", "::", c.Node1.IPv4.String(), c.Node1.IPv6.String()} {
			taken := netip.AddrPortFrom(netip.MustParseAddr(address), s.NodePort())
			for _, network := range []string{"tcp", "udp"} {
				if err := bind(c.Node1, network, taken); !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("bind of %s %s gives %v, want EADDRINUSE", network, taken, err)
				}
				other := netip.AddrPortFrom(taken.Addr(), 29000+s.NodePort()%1000)
				if err := bind(c.Node1, network, other); err != nil {
					t.Errorf("bind of %s %s: %v", network, other, err)
				}
				if taken.Addr().IsUnspecified() {
					if err := bind(c.Toolbox, network, taken); err != nil {
						t.Errorf("a pod cannot bind %s %s: %v", network, taken, err)
					}
				}
			}
		}
	})
}

// bind makes a socket that listens, and closes it.
func bind(host *lab.Host, network string, address netip.AddrPort) error {
	return host.Do(func() error {
		listen := net.ListenConfig{Control: host.ControlSocket}
		if network == "udp" {
			socket, err := listen.ListenPacket(context.Background(), network, address.String())
			if err != nil {
				return err
			}
			return socket.Close()
		}
		socket, err := listen.Listen(context.Background(), network, address.String())
		if err != nil {
			return err
		}
		return socket.Close()
	})
}

// TestN04_LocalhostNodePort: a NodePort answers processes of the node on loopback addresses, of both families.
func TestN04_LocalhostNodePort(t *testing.T) {
	t.Parallel()
	onEachNode(t, socketLab, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		s := c.serve(t, []compile.FrontendKind{compile.NodePort}, c.Local()[0], c.Remote()[0])
		for _, address := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
			to := netip.AddrPortFrom(netip.MustParseAddr(address), s.NodePort())
			for _, protocol := range protocols {
				t.Run(fmt.Sprintf("%s/%s", address, protocol), func(t *testing.T) {
					for range 4 {
						ask(t, c.Node1, protocol, to, s.Pods...)
					}
				})
			}
			if peer, _ := peerOf(t, connectBy(t, c.Node1, "tcp", to, socketOptions{})); peer != to {
				t.Errorf("the peer of %s is %s", to, peer)
			}
			// A pod's loopback is its own.
			if _, err := c.Toolbox.AskWithin(200*time.Millisecond, compile.TCP, netip.AddrPort{}, to); err == nil {
				t.Errorf("%s answers a pod", to)
			}
		}
	})
}
