package lab_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// twoNodes are the labs with an agent on each node.
var twoNodes = []struct {
	name    string
	options lab.Options
	agent   []string
}{
	{name: "routed", options: lab.Options{TwoAgents: true, HostServers: true}},
	{name: "one network", options: lab.Options{TwoAgents: true, HostServers: true, OneNetwork: true, Pods: lab.Bridge}},
	{name: "overlay", options: lab.Options{TwoAgents: true, HostServers: true, Pods: lab.Overlay}},
	{name: "xdp", options: lab.Options{TwoAgents: true, HostServers: true, RealNICs: true}, agent: xdpNative},
}

// onTwoNodes runs a test in every lab of two nodes, bare and with a real node's netfilter rules.
func onTwoNodes(t *testing.T, test func(t *testing.T, c *cluster)) {
	t.Helper()
	t.Parallel()
	for _, topology := range twoNodes {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				test(t, shared(t, options, topology.agent...))
			})
		})
	}
}

// podsOn returns the pods with servers of a node.
func podsOn(c *cluster, node *lab.Host) []*lab.Host {
	if node == c.Node1 {
		return c.Local()
	}
	return c.Remote()
}

// TestNodePortOfEachNode asks the NodePort of both nodes, from outside and from pods of both, for backends on the same
// node and on the other: N01, N05, N07.
func TestNodePortOfEachNode(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		for _, holder := range c.Nodes() {
			s := c.serve(t, lab.AllKinds, podsOn(c, holder)...)
			for _, node := range c.Nodes() {
				for _, family := range families {
					for _, protocol := range protocols {
						name := fmt.Sprintf("%s asked/backend on %s/%s/%s", node.Role, holder.Role, family, protocol)
						t.Run(name, func(t *testing.T) {
							testNodePort(t, c, s, node, holder, family, protocol)
						})
					}
				}
			}
		}
	})
}

func testNodePort(t *testing.T, c *cluster, s lab.Service, node, holder *lab.Host, family compile.Family, protocol compile.Protocol) {
	t.Helper()
	to := s.FrontendOn(c.Lab, node, compile.NodePort, family)
	answer := ask(t, c.Client, protocol, to, s.Pods...)
	if want := c.Client.Addr(family); node == holder && answer.Client.Addr() != want {
		t.Errorf("the backend on the node that was asked sees %s, want the client's own address %s: N05", answer.Client, want)
	}
	if want := c.InnerOf(node, family); node != holder && answer.Client.Addr() != want {
		t.Errorf("the backend on the other node sees %s, want the address %s of the node that was asked: N05", answer.Client, want)
	}
	for _, pod := range []*lab.Host{c.Toolbox, c.Remote()[1]} {
		ask(t, pod, protocol, to, s.Pods...)
	}
}

// TestHostNetworkBackend serves with processes of the nodes as endpoints: pods with host networking.
func TestHostNetworkBackend(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		for _, server := range c.Nodes() {
			s := c.serve(t, lab.AllKinds, server)
			for _, kind := range frontendKinds {
				for _, family := range families {
					for _, protocol := range protocols {
						to := s.Frontend(c.Lab, kind, family)
						for _, from := range []*lab.Host{c.Client, c.Toolbox, c.Remote()[0]} {
							ask(t, from, protocol, to, server)
						}
					}
				}
			}
		}
	})
}

// TestSameBackendOnBothNodes asks by one node and then by the other, from one port: Maglev tables pick the same backend
// for the same client on every node.
func TestSameBackendOnBothNodes(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Web...)
		for _, family := range families {
			to := s.Frontend(c.Lab, compile.LoadBalancer, family)
			for range 20 {
				local := netip.AddrPortFrom(c.Client.Addr(family), clientPort())
				servers := map[string]bool{}
				for _, node := range c.Nodes() {
					if err := c.RouteBy(node, to.Addr()); err != nil {
						t.Fatal(err)
					}
					conn := dial(t, c.Client, compile.UDP, local, to)
					servers[askOn(t, conn).Server] = true
					conn.Close()
				}
				if len(servers) != 1 {
					t.Errorf("%s: the nodes pick different backends for %s: %v", to, local, servers)
				}
			}
		}
	})
}

// TestPortUsedStraightAndByNodePort connects from one port of a pod to the other node's NodePort, closes, and connects
// to a ClusterIP, whose packets come to the other node straight to the same backend. The answers are not taken for the
// first connection's.
func TestPortUsedStraightAndByNodePort(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Remote()[0])
		for _, family := range families {
			from := netip.AddrPortFrom(c.Toolbox.Addr(family), clientPort())
			first := dial(t, c.Toolbox, compile.TCP, from, s.FrontendOn(c.Lab, c.Node2, compile.NodePort, family))
			expectServer(t, askOn(t, first), s.Pods...)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1200 * time.Millisecond) // a second after its end a flow may lose its ports
			second := dial(t, c.Toolbox, compile.TCP, from, s.Frontend(c.Lab, compile.ClusterIP, family))
			expectServer(t, askOn(t, second), s.Pods...)
		}
	})
}
