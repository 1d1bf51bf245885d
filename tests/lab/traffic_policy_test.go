package lab_test

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// externalLocal and internalLocal are the traffic policies Local, for lab.Service.Change.
func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(s *corev1.Service) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &local
}

// expectServers asks often, each time on a connection of its own, and fails the test unless exactly those hosts answer.
// That one of two is not met by chance happens once in ten million runs.
func expectServers(t *testing.T, from *lab.Host, protocol compile.Protocol, to netip.AddrPort, hosts ...*lab.Host) {
	t.Helper()
	const each = 12
	want := map[string]bool{}
	for _, host := range hosts {
		want[host.Role] = true
	}
	got := map[string]bool{}
	for n := 0; n < each*len(hosts) || (len(got) < len(want) && n < 2*each*len(hosts)); n++ {
		answer, err := from.Ask(protocol, unusedPort(from, protocol, to), to)
		if err != nil {
			t.Fatal(err)
		}
		got[answer.Server] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s asks %s by %s: %q answer, want %q", from.Role, to, protocol, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// usedPorts counts the ports that datagrams to a frontend have come from, by host and frontend.
var usedPorts sync.Map

// unusedPort returns an address that no flow of a UDP frontend is known from: one would keep its backend, where a new
// one is to show what the choice is. TCP needs none, nor does it keep one.
func unusedPort(from *lab.Host, protocol compile.Protocol, to netip.AddrPort) netip.AddrPort {
	if protocol == compile.TCP {
		return netip.AddrPort{}
	}
	count, _ := usedPorts.LoadOrStore(from.Name+" "+to.String(), &atomic.Uint32{})
	family := compile.IPv4
	if to.Addr().Is6() {
		family = compile.IPv6
	}
	// Below what clientPort gives out.
	return netip.AddrPortFrom(from.Addr(family), uint16(10000+count.(*atomic.Uint32).Add(1)%10000))
}

// expectSilence fails the test unless nothing comes back: no answer, and no refusal either.
func expectSilence(t *testing.T, from *lab.Host, protocol compile.Protocol, to netip.AddrPort) {
	t.Helper()
	answer, err := from.AskWithin(200*time.Millisecond, protocol, netip.AddrPort{}, to)
	if !isTimeout(err) {
		t.Errorf("%s asks %s by %s: got %+v, %v, want silence", from.Role, to, protocol, answer, err)
	}
}

// changed writes a service with something changed. The caller waits for what that makes different.
func (c *cluster) changed(t *testing.T, change func(*corev1.Service), pods ...*lab.Host) lab.Service {
	t.Helper()
	s := c.newService(t, lab.AllKinds, pods...)
	s.Change = change
	c.write(t, s)
	return s
}

// waitBackends waits until a node has those backends for traffic from a side to a kind of frontend.
func (c *cluster) waitBackends(t *testing.T, node *lab.Host, s lab.Service, kind compile.FrontendKind, side lab.Side, hosts ...*lab.Host) {
	t.Helper()
	for _, agent := range c.agents {
		if agent.Node != node {
			continue
		}
		if err := agent.WaitBackends(s, kind, side, hosts...); err != nil {
			t.Fatal(err)
		}
	}
}

// routeBy makes the client send to the service's addresses by a node, until the test ends.
func (c *cluster) routeBy(t *testing.T, node *lab.Host, s lab.Service) {
	t.Helper()
	for _, kind := range frontendKinds {
		for _, family := range families {
			if kind == compile.NodePort {
				continue
			}
			if err := c.RouteBy(node, s.Frontend(c.Lab, kind, family).Addr()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestExternalPolicyLocal has an endpoint on each node. What comes from outside is answered on the node that it comes to,
// and the backend sees the client: P01. Pods are inside: for them any endpoint will do, wherever they ask: P03, P09, L08.
// The ClusterIP has a policy of its own: P07.
func TestExternalPolicyLocal(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.changed(t, externalLocal, c.Local()[0], c.Remote()[0])
		for _, node := range c.Nodes() {
			c.waitBackends(t, node, s, compile.LoadBalancer, lab.Inside, s.Pods...)
			c.waitBackends(t, node, s, compile.ClusterIP, lab.Outside, s.Pods...)
		}
		for _, node := range c.Nodes() {
			c.waitBackends(t, node, s, compile.LoadBalancer, lab.Outside, podsOn(c, node)[0])
			c.routeBy(t, node, s)
			for _, family := range families {
				for _, protocol := range protocols {
					testExternalLocal(t, c, s, node, family, protocol)
				}
			}
		}
	})
}

func testExternalLocal(t *testing.T, c *cluster, s lab.Service, node *lab.Host, family compile.Family, protocol compile.Protocol) {
	t.Helper()
	pods := podsOn(c, node)
	for _, kind := range lab.AllKinds {
		to := s.FrontendOn(c.Lab, node, kind, family)
		expectServers(t, c.Client, protocol, to, pods[0])
		if answer := ask(t, c.Client, protocol, to, pods[0]); answer.Client.Addr() != c.Client.Addr(family) {
			t.Errorf("%s: the backend sees %s, want the client's own address: P01", to, answer.Client)
		}
		expectServers(t, pods[1], protocol, to, s.Pods...)
		if answer := ask(t, pods[1], protocol, to, s.Pods...); answer.Client.Addr() != pods[1].Addr(family) {
			t.Errorf("%s: the backend sees %s, want the pod's own address: P03", to, answer.Client)
		}
	}
	expectServers(t, c.Client, protocol, s.Frontend(c.Lab, compile.ClusterIP, family), s.Pods...)
}

// TestExternalPolicyLocalElsewhere has all endpoints on the other node: what comes from outside is dropped without a word,
// so that who balances before us notices (P02); pods are served (P03, P09). With no endpoint anywhere, everybody is
// refused: P06.
func TestExternalPolicyLocalElsewhere(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.changed(t, externalLocal, c.Remote()...)
		c.waitBackends(t, c.Node1, s, compile.NodePort, lab.Inside, s.Pods...)
		before := counters(t, c)
		for _, kind := range lab.AllKinds {
			for _, family := range families {
				for _, protocol := range protocols {
					to := s.Frontend(c.Lab, kind, family)
					expectSilence(t, c.Client, protocol, to)
					ask(t, c.Toolbox, protocol, to, s.Pods...)
				}
			}
		}
		if after := counters(t, c); after.DropNoLocalEndpoint <= before.DropNoLocalEndpoint {
			t.Error("what was dropped is not counted as that")
		}
		s.Pods = nil
		c.apply(t, s)
		for _, kind := range lab.AllKinds {
			for _, family := range families {
				for _, protocol := range protocols {
					expectRefused(t, c.Client, protocol, s.Frontend(c.Lab, kind, family))
					expectRefused(t, c.Toolbox, protocol, s.Frontend(c.Lab, kind, family))
				}
			}
		}
	})
}

// TestInternalPolicyLocal has an endpoint on each node: the ClusterIP is answered on the client's own node, the other
// frontends by both: P05, P07. With the endpoint on the other node alone, the ClusterIP drops; with none anywhere it
// refuses: P06.
func TestInternalPolicyLocal(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.changed(t, internalLocal, c.Local()[0], c.Remote()[0])
		for _, node := range c.Nodes() {
			pods := podsOn(c, node)
			c.waitBackends(t, node, s, compile.ClusterIP, lab.Inside, pods[0])
			c.waitBackends(t, node, s, compile.LoadBalancer, lab.Inside, s.Pods...)
			for _, family := range families {
				for _, protocol := range protocols {
					expectServers(t, pods[1], protocol, s.Frontend(c.Lab, compile.ClusterIP, family), pods[0])
					expectServers(t, pods[1], protocol, s.Frontend(c.Lab, compile.LoadBalancer, family), s.Pods...)
				}
			}
		}
		s.Pods = c.Remote()
		c.write(t, s)
		c.waitBackends(t, c.Node1, s, compile.LoadBalancer, lab.Inside, s.Pods...)
		c.waitBackends(t, c.Node1, s, compile.ClusterIP, lab.Inside)
		for _, family := range families {
			for _, protocol := range protocols {
				expectSilence(t, c.Toolbox, protocol, s.Frontend(c.Lab, compile.ClusterIP, family))
				ask(t, c.Toolbox, protocol, s.Frontend(c.Lab, compile.ExternalIP, family), s.Pods...)
			}
		}
		s.Pods = nil
		c.apply(t, s)
		for _, family := range families {
			for _, protocol := range protocols {
				expectRefused(t, c.Toolbox, protocol, s.Frontend(c.Lab, compile.ClusterIP, family))
			}
		}
	})
}

// TestPolicyCluster has an endpoint on each node, and no policy: every frontend is answered by both, whichever node is
// asked and whoever asks: P04, and N07 of a pod that asks the other node's NodePort.
func TestPolicyCluster(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Local()[0], c.Remote()[0])
		for _, node := range c.Nodes() {
			c.routeBy(t, node, s)
			for _, kind := range frontendKinds {
				for _, family := range families {
					for _, protocol := range protocols {
						to := s.FrontendOn(c.Lab, node, kind, family)
						expectServers(t, c.Client, protocol, to, s.Pods...)
						expectServers(t, c.Toolbox, protocol, to, s.Pods...)
					}
				}
			}
		}
	})
}
