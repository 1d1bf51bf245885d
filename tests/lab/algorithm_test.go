package lab_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// annotated returns a change that adds annotations.
func annotated(annotations map[string]string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations = annotations }
}

// TestLeastConnections holds connections open, from outside, from a process and from a pod, whose packets or sockets are
// translated: as many to each of the two backends, one on each node. Those that are closed do not count.
func TestLeastConnections(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"packets": {"--socket-lb", "off"}, "sockets": socketEdge} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := own(t, lab.Options{TwoAgents: true, HostServers: true, Cgroups: true}, args...)
			s := c.newService(t, lab.AllKinds, c.Local()[0], c.Remote()[0])
			s.Change = annotated(map[string]string{"weir-lb.io/algorithm": "least-connections"})
			c.apply(t, s)
			clients := []*lab.Host{c.Client, c.Toolbox}
			if name == "sockets" {
				clients = append(clients, c.Node1)
			}
			for _, from := range clients {
				for _, family := range families {
					to := s.Frontend(c.Lab, compile.ClusterIP, family)
					first := map[string][]*lab.Conn{}
					for range 8 {
						conn := dial(t, from, compile.TCP, netip.AddrPort{}, to)
						server := askOn(t, conn).Server
						first[server] = append(first[server], conn)
					}
					for _, pod := range s.Pods {
						if got := len(first[pod.Role]); got != 4 {
							t.Errorf("%s over %s: %s has %d of 8 connections", from.Role, family, pod.Role, got)
						}
					}
					for _, conn := range first[s.Pods[0].Role] {
						if err := conn.Abort(); err != nil {
							t.Fatal(err)
						}
					}
					var second []*lab.Conn
					for n := range 4 {
						conn := dial(t, from, compile.TCP, netip.AddrPort{}, to)
						second = append(second, conn)
						if server := askOn(t, conn).Server; server != s.Pods[0].Role {
							t.Errorf("%s over %s: connection %d goes to %s, which is the busier", from.Role, family, n, server)
						}
					}
					for _, conn := range append(first[s.Pods[1].Role], second...) {
						if err := conn.Abort(); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		})
	}
}

// TestWeights gives one endpoint after the other the weight 0: it gets no new flows, from anywhere.
func TestWeights(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true, HostServers: true}, func(t *testing.T, options lab.Options) {
		c := shared(t, options)
		s := c.newService(t, lab.AllKinds, c.Local()[0], c.Remote()[0])
		c.apply(t, s)
		for i, rests := range s.Pods {
			works := s.Pods[1-i]
			s.Change = annotated(map[string]string{"weir-lb.io/weights": fmt.Sprintf("%s=0,%s=0", rests.IPv4, rests.IPv6)})
			c.write(t, s)
			for _, from := range []*lab.Host{c.Client, c.Toolbox} {
				for _, family := range families {
					to := s.Frontend(c.Lab, compile.LoadBalancer, family)
					eventually(t, 15*time.Second, func() error { return onlyAnswers(from, to, works) })
				}
			}
		}
	})
}

// onlyAnswers asks often, and is an error unless one pod alone answers.
func onlyAnswers(from *lab.Host, to netip.AddrPort, pod *lab.Host) error {
	for range 12 {
		answer, err := from.Ask(compile.TCP, netip.AddrPort{}, to)
		if err != nil {
			return err
		}
		if answer.Server != pod.Role {
			return fmt.Errorf("%s answers, not %s", answer.Server, pod.Role)
		}
	}
	return nil
}
