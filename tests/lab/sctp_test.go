package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// withSCTP gives a service a port of SCTP.
func withSCTP(s lab.Service) lab.Service {
	s.Change = func(service *corev1.Service) {
		port := corev1.ServicePort{
			Name: "sctp", Protocol: corev1.ProtocolSCTP, Port: lab.ServicePort, TargetPort: intstr.FromInt32(lab.SCTPPort),
		}
		if service.Spec.Type != corev1.ServiceTypeClusterIP {
			port.NodePort = int32(s.NodePort())
		}
		service.Spec.Ports = append(service.Spec.Ports, port)
	}
	return s
}

// TestX06Associations has peers of SCTP, which are raw sockets, talk through every kind of frontend: a client outside, a
// pod, and the node itself; the backend is a pod of the node, or elsewhere. Each packet's checksum is judged by its
// receiver; where the node has netfilter's rules, conntrack judges checksums, tags and states, too (rules X06, L10).
func TestX06Associations(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		for tag, backend := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			server, err := backend.ServeSCTP(uint32(tag + 1))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { server.Close() })
			s := withSCTP(c.newService(t, lab.AllKinds, backend))
			c.apply(t, s)
			for _, kind := range frontendKinds {
				for _, family := range families {
					frontend := s.Frontend(c.Lab, kind, family)
					if err := c.agent.WaitFrontend(s.Frontend(c.Lab, compile.LoadBalancer, family), compile.SCTP); err != nil {
						t.Fatal(err)
					}
					t.Run(fmt.Sprintf("backend %s/%s/%s", backend.Role, kind, family), func(t *testing.T) {
						clients := []*lab.Host{c.Client, c.Toolbox}
						if slices.Contains(routedKinds, kind) {
							clients = append(clients, c.Node1)
						}
						for _, from := range clients {
							client, asked, err := from.DialSCTP(family, clientPort(), frontend)
							if err != nil {
								t.Error(err)
								continue
							}
							if asked != uint32(tag+1) {
								t.Errorf("%s has asked server %d", from.Role, asked)
							}
							for _, length := range []int{0, 1, 4, 333, 1200} {
								if err := client.Exchange(length); err != nil {
									t.Errorf("%s, %d bytes: %v", from.Role, length, err)
								}
							}
							if err := client.Close(); err != nil {
								t.Errorf("%s: %v", from.Role, err)
							}
						}
					})
				}
			}
		}
	})
}

// TestX06Refused asks a service without endpoints: an ABORT that its receiver believes (rules P06, X06).
func TestX06Refused(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := withSCTP(c.newService(t, lab.AllKinds))
		c.apply(t, s)
		for _, family := range families {
			frontend := s.Frontend(c.Lab, compile.LoadBalancer, family)
			for _, from := range []*lab.Host{c.Client, c.Toolbox} {
				if _, _, err := from.DialSCTP(family, clientPort(), frontend); !errors.Is(err, lab.ErrSCTPAborted) {
					t.Errorf("%s: %v", from.Role, err)
				}
			}
		}
	})
}

// TestX06Sockets has programs talk with the kernel's own SCTP, on both sides, through every kind of frontend: more than
// a packet at once, both ways (rule X06). Peers' addresses that are in INIT and INIT ACK are left as they are.
func TestX06Sockets(t *testing.T) {
	if err := lab.HaveSCTP(); err != nil {
		t.Skip(err)
	}
	onEachTopology(t, func(t *testing.T, c *cluster) {
		for _, backend := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			server, err := backend.ListenSCTP()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { server.Close() })
			s := withSCTP(c.newService(t, lab.AllKinds, backend))
			c.apply(t, s)
			for _, kind := range frontendKinds {
				for _, family := range families {
					if err := c.agent.WaitFrontend(s.Frontend(c.Lab, compile.LoadBalancer, family), compile.SCTP); err != nil {
						t.Fatal(err)
					}
					for _, client := range []*lab.Host{c.Client, c.Toolbox} {
						t.Run(fmt.Sprintf("%s/%s/from %s to %s", kind, family, client.Role, backend.Role), func(t *testing.T) {
							associate(t, client, client.Addr(family), s.Frontend(c.Lab, kind, family), backend)
						})
					}
				}
			}
		}
	})
}

// associate sends a backend something, and wants it back.
func associate(t *testing.T, client *lab.Host, from netip.Addr, to netip.AddrPort, backend *lab.Host) {
	t.Helper()
	conn, server, err := client.ConnectSCTP(from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if server != backend.Role {
		t.Errorf("%s is there, not %s", server, backend.Role)
	}
	told, heard := make([]byte, 64<<10), make([]byte, 64<<10)
	for i := range told {
		told[i] = byte(rand.Uint32())
	}
	if _, err := conn.Write(told); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, heard); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(told, heard) {
		t.Error("what comes back is not what was sent")
	}
}
