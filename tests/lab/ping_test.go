package lab_test

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestC09Ping pings every VIP of a service with backends, and of one without, from outside and from a pod and from the node itself.
func TestC09Ping(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		served, empty := c.serve(t, lab.AllKinds, c.Remote()...), c.serve(t, lab.AllKinds)
		for _, kind := range []compile.FrontendKind{compile.ClusterIP, compile.LoadBalancer, compile.ExternalIP} {
			for _, family := range families {
				for _, from := range []*lab.Host{c.Client, c.Toolbox, c.Node1} {
					if to := served.Frontend(c.Lab, kind, family).Addr(); !pings(from, to) {
						t.Errorf("%s pings %s, a %s with backends: no answer", from.Role, to, kind)
					}
				}
			}
		}
		for _, from := range []*lab.Host{c.Client, c.Toolbox, c.Node1} {
			if to := empty.Frontend(c.Lab, compile.LoadBalancer, compile.IPv4).Addr(); pings(from, to) {
				t.Errorf("%s pings %s, which has no backends: answered", from.Role, to)
			}
		}
	})
}

// TestC09NoPing has an agent that is told not to answer.
func TestC09NoPing(t *testing.T) {
	t.Parallel()
	c := own(t, lab.Options{}, "--vip-ping=false")
	s := c.serve(t, lab.AllKinds, c.Remote()...)
	for _, from := range []*lab.Host{c.Client, c.Toolbox} {
		if to := s.Frontend(c.Lab, compile.LoadBalancer, compile.IPv4).Addr(); pings(from, to) {
			t.Errorf("%s pings %s: answered", from.Role, to)
		}
	}
}

// pings reports whether a host gets an answer.
func pings(from *lab.Host, to netip.Addr) bool {
	_, err := from.Run("", "ping", "-n", "-q", "-c", "1", "-W", "1", to.String())
	return err == nil
}
