package lab_test

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// admitting returns a change that makes the load balancer's addresses be for these hosts alone.
func admitting(hosts ...*lab.Host) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for _, host := range hosts {
			for _, family := range families {
				address := host.Addr(family)
				s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, netip.PrefixFrom(address, address.BitLen()).String())
			}
		}
	}
}

// onlyFor serves a service whose load balancer's addresses are for these hosts alone.
func (c *cluster) onlyFor(t *testing.T, pods []*lab.Host, hosts ...*lab.Host) lab.Service {
	t.Helper()
	s := c.newService(t, lab.AllKinds, pods...)
	s.Change = admitting(hosts...)
	c.apply(t, s)
	return s
}

// TestSourceRanges asks from outside and from a pod at addresses that are for the one, or for the other, or for neither:
// who may not hears nothing from the load balancer's addresses, and is answered at all others: L04, L07, N06.
func TestSourceRanges(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		clients := []*lab.Host{c.Client, c.Toolbox}
		before := counters(t, c)
		for _, admitted := range clients {
			s := c.onlyFor(t, c.Web, admitted)
			for _, from := range clients {
				for _, family := range families {
					for _, protocol := range protocols {
						if to := s.Frontend(c.Lab, compile.LoadBalancer, family); from == admitted {
							ask(t, from, protocol, to, s.Pods...)
						} else {
							expectSilence(t, from, protocol, to)
						}
						for _, kind := range []compile.FrontendKind{compile.ClusterIP, compile.NodePort, compile.ExternalIP} {
							ask(t, from, protocol, s.Frontend(c.Lab, kind, family), s.Pods...)
						}
					}
				}
			}
		}
		if after := counters(t, c); after.DropSourceDenied <= before.DropSourceDenied {
			t.Error("what was dropped is not counted as that")
		}
	})
}

// TestSourceRangesMalformed has a range that cannot be read: nobody may, and all else works: L04.
func TestSourceRangesMalformed(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.newService(t, lab.AllKinds, c.Web...)
		s.Change = func(s *corev1.Service) {
			admitting(c.Client)(s)
			s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, "192.0.2.0/99")
		}
		c.apply(t, s)
		for _, family := range families {
			expectSilence(t, c.Client, compile.TCP, s.Frontend(c.Lab, compile.LoadBalancer, family))
			ask(t, c.Client, compile.TCP, s.Frontend(c.Lab, compile.NodePort, family), s.Pods...)
		}
	})
}

// TestSourceRangesOfSockets asks from processes of nodes and from pods, whose sockets are translated: who may not is told
// so at once (L04, P02).
func TestSourceRangesOfSockets(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true, HostServers: true, Cgroups: true}, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		clients := []*lab.Host{c.Node1, c.Toolbox}
		for _, admitted := range clients {
			s := c.onlyFor(t, []*lab.Host{c.Local()[0], c.Remote()[0]}, admitted)
			for _, from := range clients {
				for _, family := range families {
					for _, protocol := range protocols {
						to := s.Frontend(c.Lab, compile.LoadBalancer, family)
						if from == admitted {
							ask(t, from, protocol, to, s.Pods...)
						} else if _, err := from.Ask(protocol, netip.AddrPort{}, to); !errors.Is(err, syscall.EHOSTUNREACH) {
							t.Errorf("%s asks %s by %s: got %v, want %v", from.Role, to, protocol, err, syscall.EHOSTUNREACH)
						}
						ask(t, from, protocol, s.Frontend(c.Lab, compile.ExternalIP, family), s.Pods...)
					}
				}
			}
		}
	})
}
