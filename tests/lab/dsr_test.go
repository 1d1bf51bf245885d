package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// dsr are the arguments of agents whose nodes answer clients themselves.
var dsr = []string{"--forward", "dsr"}

// onDSR runs a test in every lab of two nodes that take part in DSR, bare and with a real node's netfilter rules.
func onDSR(t *testing.T, test func(t *testing.T, c *cluster)) {
	t.Helper()
	t.Parallel()
	for _, topology := range twoNodes {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				c := shared(t, options, append(dsr[:2:2], topology.agent...)...)
				waitForTunnels(t, c)
				test(t, c)
			})
		})
	}
}

// waitForTunnels waits until each node sends in tunnels: others have heard of it then.
func waitForTunnels(t *testing.T, c *cluster) {
	t.Helper()
	for _, agent := range c.agents {
		eventually(t, 10*time.Second, func() error {
			status, err := agent.CLI("status")
			if err == nil && !strings.Contains(status, "in tunnels to 1 nodes") {
				err = fmt.Errorf("%s sends in no tunnels:\n%s", agent.Node.Role, status)
			}
			return err
		})
	}
}

// other returns the other node.
func other(c *cluster, node *lab.Host) *lab.Host {
	if node == c.Node1 {
		return c.Node2
	}
	return c.Node1
}

// frontendsOn returns where a service is asked by way of a node: its NodePort, or an address that is routed to the node.
func frontendsOn(t *testing.T, c *cluster, s lab.Service, node *lab.Host, family compile.Family) []netip.AddrPort {
	t.Helper()
	var all []netip.AddrPort
	for _, kind := range s.Kinds {
		to := s.FrontendOn(c.Lab, node, kind, family)
		if kind != compile.NodePort {
			if err := c.RouteBy(node, to.Addr()); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, to)
	}
	return all
}

// onEachTunnel runs a test for every way from a client to a backend on another node than the one that it asks, by frontends
// of these kinds.
func onEachTunnel(t *testing.T, c *cluster, kinds []compile.FrontendKind, test func(t *testing.T, s lab.Service, to netip.AddrPort, family compile.Family)) {
	t.Helper()
	for _, asked := range c.Nodes() {
		s := c.serve(t, kinds, podsOn(c, other(c, asked))...)
		for _, family := range families {
			for _, to := range frontendsOn(t, c, s, asked, family) {
				t.Run(fmt.Sprintf("%s asked at %s", asked.Role, to), func(t *testing.T) { test(t, s, to, family) })
			}
		}
	}
}

// TestDSR asks each node for backends on the other: they see the client's own address, by TCP and UDP, and what does not
// fit into a packet comes whole both ways.
func TestDSR(t *testing.T) {
	onDSR(t, func(t *testing.T, c *cluster) {
		onEachTunnel(t, c, lab.AllKinds, func(t *testing.T, s lab.Service, to netip.AddrPort, family compile.Family) {
			for _, protocol := range protocols {
				answer := ask(t, c.Client, protocol, to, s.Pods...)
				if want := c.Client.Addr(family); answer.Client.Addr() != want {
					t.Errorf("by %s the backend sees %s, want the client's own address %s", protocol, answer.Client, want)
				}
			}
			c.paths.Lock()
			defer c.paths.Unlock()
			exchange(t, c.Client, to)
			exchangeLarge(t, c.Client, to)
		})
		for _, agent := range c.agents {
			sum, err := agent.Counters()
			if err != nil {
				t.Fatal(err)
			}
			if sum.TunnelSent == 0 || sum.TunnelReceived == 0 {
				t.Errorf("%s has sent %d packets in tunnels, and received %d", agent.Node.Role, sum.TunnelSent, sum.TunnelReceived)
			}
		}
	})
}

// TestDSRToHostNetwork asks each node for a process of the other: tunnels lead to the node itself.
func TestDSRToHostNetwork(t *testing.T) {
	onDSR(t, func(t *testing.T, c *cluster) {
		for _, asked := range c.Nodes() {
			server := other(c, asked)
			s := c.serve(t, lab.AllKinds, server)
			for _, family := range families {
				for _, to := range frontendsOn(t, c, s, asked, family) {
					for _, protocol := range protocols {
						answer := ask(t, c.Client, protocol, to, server)
						if want := c.Client.Addr(family); answer.Client.Addr() != want {
							t.Errorf("%s by %s: the backend sees %s, want the client's own address %s", to, protocol, answer.Client, want)
						}
					}
				}
			}
		}
	})
}

// TestDSRFromInside asks a NodePort of each node from pods and processes of both, for a backend on the other. Where the
// client is on the backend's own node, no answer would pass the programs of the node edge.
func TestDSRFromInside(t *testing.T) {
	onDSR(t, func(t *testing.T, c *cluster) {
		for _, asked := range c.Nodes() {
			s := c.serve(t, lab.AllKinds, podsOn(c, other(c, asked))[0])
			for _, family := range families {
				for _, protocol := range protocols {
					to := s.FrontendOn(c.Lab, asked, compile.NodePort, family)
					for _, from := range []*lab.Host{c.Toolbox, c.Remote()[1], other(c, asked)} {
						t.Run(fmt.Sprintf("%s asked/from %s/%s/%s", asked.Role, from.Role, family, protocol), func(t *testing.T) {
							ask(t, from, protocol, to, s.Pods...)
						})
					}
				}
			}
		}
	})
}

// TestDSRPathMTU sends what fits the client's link and not the tunnel: TCP is told how long its segments may be when it
// is answered, and UDP by an error.
func TestDSRPathMTU(t *testing.T) {
	onDSR(t, func(t *testing.T, c *cluster) {
		onEachTunnel(t, c, ownAddress, func(t *testing.T, _ lab.Service, to netip.AddrPort, family compile.Family) {
			c.paths.Lock()
			defer c.paths.Unlock()
			if err := c.Client.ForgetPaths(); err != nil {
				t.Fatal(err)
			}
			way := linkMTU(c) - tunnelHeader[family]
			conn := exchange(t, c.Client, to)
			if segment, most := segmentOf(t, conn), way-ipAndTCP[family]; segment > most {
				t.Errorf("TCP sends segments of %d bytes, and a tunnel takes %d", segment, most)
			}
			datagrams := dial(t, c.Client, compile.UDP, netip.AddrPort{}, to)
			set(t, datagrams, discover[family], unix.IP_PMTUDISC_DO)
			set(t, datagrams, reportAll[family], 1)
			askOn(t, datagrams)
			sendDatagram(t, datagrams, way+1-ipAndUDP[family])
			if _, err := datagrams.Read(make([]byte, 2048)); !errors.Is(err, syscall.EMSGSIZE) {
				t.Errorf("a datagram too big for the tunnel: got %v, want %v", err, syscall.EMSGSIZE)
			}
			if mtu := get(t, datagrams, pathMTU[family]); mtu != way {
				t.Errorf("the path MTU is %d, want %d", mtu, way)
			}
			askOn(t, datagrams)
		})
	})
}

// ownAddress is a kind whose frontends have an address of their service's own: nobody else learns of the way there.
var ownAddress = []compile.FrontendKind{compile.LoadBalancer}

// linkMTU is what the way between the nodes' pods takes.
func linkMTU(c *cluster) int {
	if c.Options.Pods == lab.Overlay {
		return 1450
	}
	return 1500
}

// What headers take of a packet.
var (
	tunnelHeader = map[compile.Family]int{compile.IPv4: 20, compile.IPv6: 40}
	ipAndTCP     = map[compile.Family]int{compile.IPv4: 40, compile.IPv6: 60}
)

// segmentOf returns how long the segments of a TCP connection may be, options included.
func segmentOf(t *testing.T, conn *lab.Conn) int {
	t.Helper()
	info := tcpInfoOf(t, conn)
	return int(info.Snd_mss) + timestampsOption
}

// timestampsOption is what TCP timestamps take of each segment.
const timestampsOption = 12

// TestDSRErrorsToVIP has a narrow link before the client: the router there tells the VIP of the node that was asked, which
// has sent nothing, and the backend on the other node learns what fits.
func TestDSRErrorsToVIP(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true, OneNetwork: true}, func(t *testing.T, options lab.Options) {
		c := own(t, options, dsr...)
		waitForTunnels(t, c)
		distant, err := c.AddDistant()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Client.Narrow(narrowMTU, distant); err != nil {
			t.Fatal(err)
		}
		onEachTunnel(t, c, lab.AllKinds, func(t *testing.T, s lab.Service, to netip.AddrPort, _ compile.Family) {
			for _, backend := range s.Pods {
				if err := backend.ForgetPaths(); err != nil {
					t.Fatal(err)
				}
			}
			before := translatedErrors(t, c)
			exchange(t, distant, to)
			if translatedErrors(t, c) == before {
				t.Error("no backend has been told")
			}
		})
	})
}

func translatedErrors(t *testing.T, c *cluster) (sum uint64) {
	t.Helper()
	for _, agent := range c.agents {
		counters, err := agent.Counters()
		if err != nil {
			t.Fatal(err)
		}
		sum += counters.IcmpTranslated
	}
	return sum
}

// TestDSRWithoutAgents kills both agents while connections go by tunnels, and new ones begin: programs and maps do it all.
// Agents that start again change nothing of it.
func TestDSRWithoutAgents(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true}, func(t *testing.T, options lab.Options) {
		c := own(t, options, dsr...)
		waitForTunnels(t, c)
		s := c.serve(t, lab.AllKinds, c.Remote()...)
		for _, family := range families {
			if err := c.RouteBy(c.Node1, s.Frontend(c.Lab, compile.LoadBalancer, family).Addr()); err != nil {
				t.Fatal(err)
			}
		}
		traffic := startLoad(c, s)
		time.Sleep(500 * time.Millisecond)
		before := counters(t, c)
		for _, agent := range c.agents {
			if err := agent.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(500 * time.Millisecond)
		for _, agent := range c.agents {
			if err := agent.Start(); err != nil {
				t.Fatal(err)
			}
			if err := agent.WaitHealthy(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(500 * time.Millisecond)
		traffic.end(t)
		if after := counters(t, c); after.FlowNew == before.FlowNew || after.TunnelSent == before.TunnelSent {
			t.Errorf("nothing has gone in tunnels meanwhile: %+v", after)
		}
	})
}

// TestDSRToNodesWithoutWeir asks a node for backends on one that runs no Weir: they see the node's address, as without DSR.
func TestDSRToNodesWithoutWeir(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := own(t, options, dsr...)
		s := c.serve(t, lab.AllKinds, c.Remote()...)
		for _, family := range families {
			for _, protocol := range protocols {
				answer := ask(t, c.Client, protocol, s.Frontend(c.Lab, compile.LoadBalancer, family), s.Pods...)
				if want := c.Inner(family); answer.Client.Addr() != want {
					t.Errorf("by %s the backend sees %s, want the node's address %s", protocol, answer.Client, want)
				}
			}
		}
		if sent := counters(t, c).TunnelSent; sent != 0 {
			t.Errorf("%d packets have gone in tunnels", sent)
		}
	})
}

// TestDSRTunnelBroken takes Weir off the backends' node, whose Node goes on to say that it takes part: connections begin
// with the second SYN, which goes by SNAT.
func TestDSRTunnelBroken(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true}, func(t *testing.T, options lab.Options) {
		c := own(t, options, dsr...)
		waitForTunnels(t, c)
		s := c.serve(t, []compile.FrontendKind{compile.NodePort}, c.Remote()...)
		if err := c.agents[1].Kill(); err != nil {
			t.Fatal(err)
		}
		if out, err := c.agents[1].CLI("cleanup"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, family := range families {
			answer, err := c.Client.Ask(compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.NodePort, family))
			if err != nil {
				t.Fatal(err)
			}
			expectServer(t, answer, s.Pods...)
			if want := c.Inner(family); answer.Client.Addr() != want {
				t.Errorf("the backend sees %s, want the node's address %s", answer.Client, want)
			}
		}
	})
}
