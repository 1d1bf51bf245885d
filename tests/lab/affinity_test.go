package lab_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// affinityOf makes clients keep their backend for that long.
func affinityOf(timeout time.Duration) func(*corev1.Service) {
	return func(s *corev1.Service) {
		seconds := int32(timeout / time.Second)
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

// onEachClientEdge runs a test where pods' packets are translated, and where sockets are.
func onEachClientEdge(t *testing.T, test func(t *testing.T, c *cluster, inside []*lab.Host)) {
	t.Helper()
	t.Parallel()
	options := lab.Options{TwoAgents: true, HostServers: true, Cgroups: true}
	t.Run("pod edge", func(t *testing.T) {
		t.Parallel()
		c := shared(t, options)
		test(t, c, []*lab.Host{c.Toolbox})
	})
	t.Run("socket edge", func(t *testing.T) {
		t.Parallel()
		c := shared(t, options, socketEdge...)
		test(t, c, []*lab.Host{c.Toolbox, c.Node1})
	})
}

// TestAffinity asks the frontends of a service again and again: whichever it is, a client gets the backend that it has
// had, from outside, from pods and from processes of a node (A01, A02). When that one goes the client gets another, and
// keeps it (A04).
func TestAffinity(t *testing.T) {
	onEachClientEdge(t, func(t *testing.T, c *cluster, inside []*lab.Host) {
		s := c.newService(t, lab.AllKinds, c.Web...)
		s.Change = affinityOf(time.Hour)
		c.apply(t, s)
		for _, from := range append(inside, c.Client) {
			for _, family := range families {
				s.Pods = c.Web
				c.apply(t, s)
				first := expectOneServer(t, c, s, from, family)
				s.Pods = slices.DeleteFunc(slices.Clone(c.Web), func(h *lab.Host) bool { return h.Role == first })
				c.apply(t, s)
				if second := expectOneServer(t, c, s, from, family); second == first {
					t.Errorf("%s still gets %s, which has gone", from.Role, first)
				}
			}
		}
	})
}

// expectOneServer asks every frontend some times, and returns who has answered.
func expectOneServer(t *testing.T, c *cluster, s lab.Service, from *lab.Host, family compile.Family) string {
	t.Helper()
	var first string
	for range 3 {
		for _, kind := range frontendKinds {
			to := s.Frontend(c.Lab, kind, family)
			server := ask(t, from, compile.TCP, to, s.Pods...).Server
			if first == "" {
				first = server
			}
			if server != first {
				t.Errorf("%s asks %s: %s answers, before it was %s", from.Role, to, server, first)
			}
		}
	}
	return first
}

// TestAffinityTimeout waits for longer than a client is remembered, and sees it get another backend: A03. Affinity that is
// switched off and on leaves connections where they are: A05.
func TestAffinityTimeout(t *testing.T) {
	onEachClientEdge(t, func(t *testing.T, c *cluster, inside []*lab.Host) {
		s := c.newService(t, lab.AllKinds, c.Web...)
		s.Change = affinityOf(time.Second)
		c.apply(t, s)
		from, to := inside[0], s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4)
		conn := dial(t, from, compile.TCP, netip.AddrPort{}, to)
		first := askOn(t, conn).Server
		moved := false
		for range 12 { // by chance it is the same each time once in 10^7 runs
			time.Sleep(2100 * time.Millisecond)
			if moved = ask(t, from, compile.TCP, to, s.Pods...).Server != first; moved {
				break
			}
		}
		if !moved {
			t.Errorf("%s gets %s for longer than the timeout", from.Role, first)
		}
		for _, change := range []func(*corev1.Service){nil, affinityOf(time.Hour)} {
			s.Change = change
			c.write(t, s)
			if err := c.agent.WaitAffinity(s, change != nil); err != nil {
				t.Fatal(err)
			}
			if server := askOn(t, conn).Server; server != first {
				t.Errorf("the connection moves from %s to %s", first, server)
			}
		}
	})
}
