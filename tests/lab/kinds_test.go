package lab_test

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// only lists a service's frontend kinds that stay with a change, of the families that stay.
type only struct {
	kinds    []compile.FrontendKind
	families []compile.Family
}

// TestServiceChangesKind takes frontends away from a Service, and gives them back, by changing its type, its addresses,
// its families and its ports. What is gone has no frontend any more, the rest is served (S02, S06); established TCP
// connections go on in any case: X01.
func TestServiceChangesKind(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Local()[0], c.Remote()[0])
		conns := connectEverywhere(t, c, s)
		changes := []struct {
			name   string
			change func(*corev1.Service)
			left   only
		}{
			{
				"no LoadBalancer address", func(s *corev1.Service) { s.Status.LoadBalancer = corev1.LoadBalancerStatus{} },
				only{[]compile.FrontendKind{compile.ClusterIP, compile.NodePort, compile.ExternalIP}, families},
			},
			{"ClusterIP alone", makeClusterIP, only{[]compile.FrontendKind{compile.ClusterIP}, families}},
			{"IPv4 alone", singleStack, only{frontendKinds, families[:1]}},
			{"headless", func(s *corev1.Service) {
				s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
			}, only{}},
			{"ExternalName", makeExternalName, only{}},
			{"another port", func(s *corev1.Service) {
				for i := range s.Spec.Ports {
					s.Spec.Ports[i].Port, s.Spec.Ports[i].NodePort = 8000, 0
				}
			}, only{}},
		}
		for _, change := range changes {
			s.Change = change.change
			c.write(t, s)
			expectOnly(t, c, s, change.name, change.left)
			for i, answer := range askAtOnce(t, conns) {
				if answer.Retransmits != 0 {
					t.Errorf("%s: connection %d lost %d segments", change.name, i, answer.Retransmits)
				}
				expectServer(t, answer, s.Pods...)
			}
			s.Change = nil
			c.apply(t, s)
			expectOnly(t, c, s, "back again", only{frontendKinds, families})
		}
	})
}

// makeClusterIP leaves nothing but the ClusterIP.
func makeClusterIP(s *corev1.Service) {
	s.Spec.Type, s.Spec.ExternalIPs, s.Status = corev1.ServiceTypeClusterIP, nil, corev1.ServiceStatus{}
	for i := range s.Spec.Ports {
		s.Spec.Ports[i].NodePort = 0
	}
}

// makeExternalName makes the Service another name of something, as the API server would: without addresses.
func makeExternalName(s *corev1.Service) {
	makeClusterIP(s)
	s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.org"
	s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = "", nil, nil, nil
}

// singleStack takes the Service's IPv6 addresses away, as the API server and the cloud's controller would.
func singleStack(s *corev1.Service) {
	single := corev1.IPFamilyPolicySingleStack
	s.Spec.ClusterIPs, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = s.Spec.ClusterIPs[:1], s.Spec.IPFamilies[:1], &single
	s.Spec.ExternalIPs = s.Spec.ExternalIPs[:1]
	s.Status.LoadBalancer.Ingress = s.Status.LoadBalancer.Ingress[:1]
}

// expectOnly expects those frontends to be served, and no others to be there, on every node.
func expectOnly(t *testing.T, c *cluster, s lab.Service, what string, left only) {
	t.Helper()
	for _, agent := range c.agents {
		if err := agent.WaitOnly(s, left.kinds, left.families); err != nil {
			t.Fatalf("%s: on %s: %v", what, agent.Node.Role, err)
		}
	}
	for _, kind := range left.kinds {
		for _, family := range left.families {
			for _, protocol := range protocols {
				for _, from := range []*lab.Host{c.Client, c.Toolbox} {
					ask(t, from, protocol, s.Frontend(c.Lab, kind, family), s.Pods...)
				}
			}
		}
	}
}

// TestPortReused opens a connection from the very port of one that has just ended, when the endpoints have changed: it is
// a new connection, for the new endpoints: X10.
func TestPortReused(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		ends := map[string]func(*lab.Conn) error{"closed": (*lab.Conn).LetServerClose, "reset": (*lab.Conn).Abort}
		for _, pods := range [][]*lab.Host{c.Local(), c.Remote(), {c.Local()[0], c.Remote()[0]}} {
			for how, end := range ends {
				s := c.serve(t, lab.AllKinds, pods[0])
				var conns []*lab.Conn
				for _, family := range families {
					for _, from := range []*lab.Host{c.Client, c.Toolbox} {
						local := netip.AddrPortFrom(from.Addr(family), clientPort())
						conn := dial(t, from, compile.TCP, local, s.Frontend(c.Lab, compile.LoadBalancer, family))
						expectServer(t, askOn(t, conn), pods[0])
						conns = append(conns, conn)
					}
				}
				s.Pods = pods[1:]
				c.apply(t, s)
				for _, conn := range conns {
					local, to := conn.LocalAddrPort(), conn.RemoteAddrPort()
					from := c.Client
					if local.Addr() == c.Toolbox.IPv4 || local.Addr() == c.Toolbox.IPv6 {
						from = c.Toolbox
					}
					if err := end(conn); err != nil {
						t.Fatal(err)
					}
					again := dialAgain(t, from, local, to)
					if answer := askOn(t, again); answer.Server != pods[1].Role {
						t.Errorf("%s, from %s to %s: %s answers on a new connection, want %s", how, local, to, answer.Server, pods[1].Role)
					}
				}
			}
		}
	})
}

// dialAgain connects from a port that is free as soon as the last segment of the connection before has come.
func dialAgain(t *testing.T, from *lab.Host, local, to netip.AddrPort) *lab.Conn {
	t.Helper()
	var conn *lab.Conn
	eventually(t, 10*time.Second, func() (err error) {
		conn, err = from.Dial(compile.TCP, local, to)
		if err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Fatal(err)
		}
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}
