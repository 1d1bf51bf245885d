package lab_test

import (
	"net/netip"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestTerminatingEndpoints has endpoints that are about to go: they serve where there is no ready one, whatever the
// policy, and are left alone where there is: T01, T03.
func TestTerminatingEndpoints(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.newService(t, lab.AllKinds, c.Local()[0])
		s.Terminating = []*lab.Host{c.Local()[1], c.Remote()[0]}
		c.apply(t, s)
		askEverywhere(t, c, s, s.Pods...)
		s.Pods = nil
		c.write(t, s)
		for _, node := range c.Nodes() {
			c.waitBackends(t, node, s, compile.ClusterIP, lab.Inside, s.Terminating...)
		}
		askEverywhere(t, c, s, s.Terminating...)
	})
}

// askEverywhere expects exactly those hosts to answer, inside and outside.
func askEverywhere(t *testing.T, c *cluster, s lab.Service, hosts ...*lab.Host) {
	t.Helper()
	for _, family := range families {
		for _, protocol := range protocols {
			for _, from := range []*lab.Host{c.Client, c.Toolbox, c.Remote()[1]} {
				expectServers(t, from, protocol, s.Frontend(c.Lab, compile.ClusterIP, family), hosts...)
			}
			expectServers(t, c.Client, protocol, s.Frontend(c.Lab, compile.LoadBalancer, family), hosts...)
		}
	}
}

// TestLocalTerminatingEndpoints has the only ready endpoint on the other node. With policy Local the one of this node
// serves though it is about to go; where any endpoint will do, the ready one does: T02, T03.
func TestLocalTerminatingEndpoints(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		ready, terminating := c.Remote()[0], c.Local()[0]
		outside := c.newService(t, lab.AllKinds, ready)
		outside.Change, outside.Terminating = externalLocal, []*lab.Host{terminating}
		c.write(t, outside)
		inside := c.newService(t, lab.AllKinds, ready)
		inside.Change, inside.Terminating = internalLocal, []*lab.Host{terminating}
		c.write(t, inside)
		c.waitBackends(t, c.Node1, outside, compile.LoadBalancer, lab.Outside, terminating)
		c.waitBackends(t, c.Node1, outside, compile.LoadBalancer, lab.Inside, ready)
		c.waitBackends(t, c.Node1, inside, compile.ClusterIP, lab.Inside, terminating)
		c.waitBackends(t, c.Node1, inside, compile.LoadBalancer, lab.Inside, ready)
		for _, family := range families {
			for _, protocol := range protocols {
				for _, kind := range lab.AllKinds {
					expectServers(t, c.Client, protocol, outside.Frontend(c.Lab, kind, family), terminating)
					expectServers(t, c.Toolbox, protocol, outside.Frontend(c.Lab, kind, family), ready)
					expectServers(t, c.Toolbox, protocol, inside.Frontend(c.Lab, kind, family), ready)
				}
				expectServers(t, c.Toolbox, protocol, inside.Frontend(c.Lab, compile.ClusterIP, family), terminating)
			}
		}
	})
}

// TestConnectionToTerminatingEndpoint makes the endpoint of established connections terminate, and then removes it: they
// go on, new ones go elsewhere: T04, X01, D03.
func TestConnectionToTerminatingEndpoint(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		for _, pod := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			s := c.serve(t, lab.AllKinds, pod)
			conns := connectEverywhere(t, c, s)
			s.Pods, s.Terminating = []*lab.Host{c.Local()[1]}, []*lab.Host{pod}
			c.apply(t, s)
			expectAlive(t, conns, pod)
			askEverywhere(t, c, s, s.Pods...)
			s.Terminating = nil
			c.apply(t, s)
			expectAlive(t, conns, pod)
			askEverywhere(t, c, s, s.Pods...)
		}
	})
}

// connectEverywhere connects by TCP to every frontend, from a pod of each node and from outside.
func connectEverywhere(t *testing.T, c *cluster, s lab.Service) []*lab.Conn {
	t.Helper()
	var conns []*lab.Conn
	for _, kind := range frontendKinds {
		for _, family := range families {
			for _, from := range []*lab.Host{c.Client, c.Toolbox, c.Remote()[1]} {
				conn := dial(t, from, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, kind, family))
				askOn(t, conn)
				conns = append(conns, conn)
			}
		}
	}
	return conns
}

// expectAlive expects an answer of the host on every connection.
func expectAlive(t *testing.T, conns []*lab.Conn, host *lab.Host) {
	t.Helper()
	for _, answer := range askAtOnce(t, conns) {
		expectServer(t, answer, host)
	}
}

// hintedZones gives every endpoint but those the hint that it is for the zone of its own node.
func hintedZones(but ...*lab.Host) func(*lab.Host, *discoveryv1.Endpoint) {
	return func(host *lab.Host, endpoint *discoveryv1.Endpoint) {
		for _, b := range but {
			if b == host {
				return
			}
		}
		endpoint.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: lab.ZoneOf(host.Node())}}}
	}
}

// hintedNodes gives every endpoint the hint that it is for its own node.
func hintedNodes(host *lab.Host, endpoint *discoveryv1.Endpoint) {
	endpoint.Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: host.Node().Role}}}
}

// TestTopologyHints gives endpoints hints: each node's traffic stays in its zone, or on it, from inside and from outside
// (H01, H02, H04); not where one endpoint has no hint (H02), nor on a node without a zone (H03). A policy Local takes no
// notice: P08.
func TestTopologyHints(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true}, func(t *testing.T, options lab.Options) {
		c := own(t, options)
		everyone := []*lab.Host{c.Local()[0], c.Remote()[0]}
		s := c.newService(t, lab.AllKinds, everyone...)

		s.ChangeEndpoint = hintedZones()
		c.write(t, s)
		expectTopology(t, c, s, c.Local()[:1], c.Remote()[:1])

		s.ChangeEndpoint = hintedZones(c.Remote()[0])
		c.write(t, s)
		expectTopology(t, c, s, everyone, everyone)

		s.ChangeEndpoint = hintedNodes
		c.write(t, s)
		expectTopology(t, c, s, c.Local()[:1], c.Remote()[:1])

		s.ChangeEndpoint = hintedZones()
		c.write(t, s)
		writeNode(t, c, c.Node1, "")
		expectTopology(t, c, s, everyone, c.Remote()[:1])
		writeNode(t, c, c.Node1, lab.ZoneOf(c.Node2))
		expectTopology(t, c, s, c.Remote()[:1], c.Remote()[:1])

		s.Change = externalLocal
		c.write(t, s)
		c.waitBackends(t, c.Node1, s, compile.LoadBalancer, lab.Outside, c.Local()[0])
		expectServers(t, c.Client, compile.TCP, s.Frontend(c.Lab, compile.LoadBalancer, compile.IPv4), c.Local()[0])
	})
}

// writeNode changes the zone of a node.
func writeNode(t *testing.T, c *cluster, node *lab.Host, zone string) {
	t.Helper()
	object, err := lab.NodeYAML(node, zone, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.agent.Write(node.Role, object); err != nil {
		t.Fatal(err)
	}
}

// expectTopology expects each node to serve everybody by its own choice of endpoints.
func expectTopology(t *testing.T, c *cluster, s lab.Service, node1, node2 []*lab.Host) {
	t.Helper()
	for node, hosts := range map[*lab.Host][]*lab.Host{c.Node1: node1, c.Node2: node2} {
		c.waitBackends(t, node, s, compile.ClusterIP, lab.Inside, hosts...)
		c.waitBackends(t, node, s, compile.LoadBalancer, lab.Outside, hosts...)
		for _, family := range families {
			for _, protocol := range protocols {
				expectServers(t, podsOn(c, node)[1], protocol, s.Frontend(c.Lab, compile.ClusterIP, family), hosts...)
				expectServers(t, c.Client, protocol, s.FrontendOn(c.Lab, node, compile.NodePort, family), hosts...)
			}
		}
	}
}
