package lab_test

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// nextPort gives every test a client port of its own, below the kernel's range for clients.
var nextPort atomic.Uint32

// clientPort returns a port that no other test binds.
func clientPort() uint16 { return uint16(20000 + nextPort.Add(1)) }

// TestOnePortTwoFrontends opens two connections from one address and port of a client, to two frontends: of two
// services with different backends, of two services with the same backend, and of one service. Both answer, each
// under the name that was asked.
func TestOnePortTwoFrontends(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		web1, web3 := c.Local()[0], c.Remote()[0]
		pairs := map[string][2]lab.Service{
			"different backends":  {c.serve(t, lab.AllKinds, web1), c.serve(t, lab.AllKinds, web3)},
			"same local backend":  {c.serve(t, lab.AllKinds, web1), c.serve(t, lab.AllKinds, web1)},
			"same remote backend": {c.serve(t, lab.AllKinds, web3), c.serve(t, lab.AllKinds, web3)},
		}
		for name, pair := range pairs {
			for _, family := range families {
				for _, protocol := range protocols {
					for _, from := range []*lab.Host{c.Toolbox, c.Client} {
						t.Run(fmt.Sprintf("%s/%s/%s/from %s", name, family, protocol, from.Role), func(t *testing.T) {
							testOnePort(t, from, protocol, from.Addr(family), []target{
								{pair[0].Frontend(c.Lab, compile.ClusterIP, family), pair[0].Pods[0]},
								{pair[1].Frontend(c.Lab, compile.LoadBalancer, family), pair[1].Pods[0]},
								{pair[0].Frontend(c.Lab, compile.NodePort, family), pair[0].Pods[0]},
							})
						})
					}
				}
			}
		}
	})
}

// target is a frontend and who shall answer.
type target struct {
	frontend netip.AddrPort
	pod      *lab.Host
}

// testOnePort opens a connection to each target from one port, and uses them in turn.
func testOnePort(t *testing.T, from *lab.Host, protocol compile.Protocol, address netip.Addr, targets []target) {
	t.Helper()
	local := netip.AddrPortFrom(address, clientPort())
	conns := make([]*lab.Conn, len(targets))
	for i, target := range targets {
		conns[i] = dial(t, from, protocol, local, target.frontend)
	}
	seen := map[string]bool{}
	for round := range 3 {
		for i, target := range targets {
			answer, err := conns[i].Ask()
			if err != nil {
				t.Fatalf("round %d, %s: %v", round, target.frontend, err)
			}
			expectServer(t, answer, target.pod)
			seen[answer.Server+" "+answer.Client.String()] = true
		}
	}
	if len(seen) != len(targets) {
		t.Errorf("%d connections look like %d to their backends: %v", len(targets), len(seen), seen)
	}
}

// TestTwoClientsOnePort lets two clients use the same source port to a remote backend, at a port inside the range that
// SNAT takes from and at one outside it.
func TestTwoClientsOnePort(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Remote()[0])
		for _, port := range []uint16{clientPort(), snatMin + uint16(nextPort.Add(1))} {
			for _, family := range families {
				for _, protocol := range protocols {
					to := s.Frontend(c.Lab, compile.LoadBalancer, family)
					first := dial(t, c.Client, protocol, netip.AddrPortFrom(c.Client.Addr(family), port), to)
					second := dial(t, c.Client, protocol, netip.AddrPortFrom(c.SecondAddr(family), port), to)
					for range 3 {
						one, two := askOn(t, first), askOn(t, second)
						if one.Client == two.Client {
							t.Fatalf("%s by %s: the backend cannot tell two clients with port %d apart: %s", to, protocol, port, one.Client)
						}
					}
				}
			}
		}
	})
}

// TestHostHoldsTuple lets a socket of the node hold the very tuple that SNAT would take first: the client's port,
// toward the same backend. Both go on working. The cluster is the test's own: a flow of another test could have the
// tuple before the socket has it.
func TestHostHoldsTuple(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		if topology.options.Outside == lab.Tun || topology.options.Nodes == lab.Tun {
			continue // enough labs: how packets come and go makes no difference here
		}
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				testHostHoldsTuple(t, own(t, options, topology.agent...))
			})
		})
	}
}

func testHostHoldsTuple(t *testing.T, c *cluster) {
	pod := c.Remote()[0]
	s := c.serve(t, lab.AllKinds, pod)
	port := uint16(snatMin)
	for _, family := range families {
		for _, protocol := range protocols {
			port++
			backend := netip.AddrPortFrom(pod.Addr(family), lab.TCPPort)
			host := dial(t, c.Node1, protocol, netip.AddrPortFrom(c.Inner(family), port), backend)
			expectOwn(t, askOn(t, host), c.Inner(family), port)
			client := dial(t, c.Client, protocol, netip.AddrPortFrom(c.Client.Addr(family), port), s.Frontend(c.Lab, compile.ExternalIP, family))
			for range 3 {
				expectOwn(t, askOn(t, host), c.Inner(family), port)
				if answer := askOn(t, client); answer.Client == netip.AddrPortFrom(c.Inner(family), port) {
					t.Fatalf("%s %s: the client's connection took the tuple of the node's socket", family, protocol)
				}
			}
		}
	}
}

// expectOwn fails the test unless the server saw exactly that address and port.
func expectOwn(t *testing.T, answer lab.Answer, address netip.Addr, port uint16) {
	t.Helper()
	if want := netip.AddrPortFrom(address, port); answer.Client != want {
		t.Errorf("%s sees %s, want %s", answer.Server, answer.Client, want)
	}
}

// TestSNATPortsExhausted gives the agent four ports: a fifth connection to one backend is dropped and counted, those
// that are there go on, and it gets through once others have ended.
func TestSNATPortsExhausted(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		const ports = 4
		c := own(t, options, "--snat-ports", "61000-61003")
		s := c.serve(t, lab.AllKinds, c.Remote()[0])
		for _, family := range families {
			to := s.Frontend(c.Lab, compile.LoadBalancer, family)
			var conns []*lab.Conn
			for range ports {
				conn := dial(t, c.Client, compile.TCP, netip.AddrPort{}, to)
				askOn(t, conn)
				conns = append(conns, conn)
			}
			before := counters(t, c)
			if answer, err := c.Client.Ask(compile.TCP, netip.AddrPort{}, to); err == nil {
				t.Fatalf("%s: a connection beyond the last port was answered: %+v", family, answer)
			}
			if after := counters(t, c); after.DropSnatPortsExhausted <= before.DropSnatPortsExhausted {
				t.Errorf("%s: the refused connection was not counted", family)
			}
			for _, conn := range conns {
				askOn(t, conn)
				conn.Close()
			}
			eventually(t, 10*time.Second, func() error {
				_, err := c.Client.Ask(compile.TCP, netip.AddrPort{}, to)
				return err
			})
		}
	})
}
