package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// socketLab is a lab whose sockets belong to cgroups, as the socket edge needs.
var socketLab = lab.Options{HostServers: true, Cgroups: true}

// TestRemovedBackendClosesSockets takes a backend out of a service, while another one keeps it: UDP sockets of processes
// and pods that are connected to it are closed, and those of TCP where the Service asks for it (D01, D05, X01).
func TestRemovedBackendClosesSockets(t *testing.T) {
	t.Parallel()
	onEachNode(t, socketLab, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		leaves, stays := c.Local()[0], c.Local()[1]
		plain := c.newService(t, nil, leaves)
		resets := c.newService(t, nil, leaves)
		resets.Change = func(s *corev1.Service) { s.Annotations = map[string]string{"weir-lb.io/removed-endpoints": "reset"} }
		other := c.serve(t, nil, leaves)
		c.apply(t, plain)
		c.apply(t, resets)
		type use struct {
			name string
			conn *lab.Conn
			ends bool
		}
		var uses []use
		for _, from := range []*lab.Host{c.Node1, c.Toolbox} {
			for _, family := range families {
				for _, of := range []struct {
					service  lab.Service
					protocol compile.Protocol
					ends     bool
				}{
					{plain, compile.UDP, true},
					{plain, compile.TCP, false},
					{resets, compile.UDP, true},
					{resets, compile.TCP, true},
					{other, compile.UDP, false},
					{other, compile.TCP, false},
				} {
					conn := dial(t, from, of.protocol, netip.AddrPort{}, of.service.Frontend(c.Lab, compile.ClusterIP, family))
					expectServer(t, askOn(t, conn), leaves)
					uses = append(uses, use{fmt.Sprintf("%s/%s/%s/%s", from.Role, family, of.protocol, of.service.Name), conn, of.ends})
				}
			}
		}
		plain.Pods, resets.Pods = []*lab.Host{stays}, []*lab.Host{stays}
		c.apply(t, plain)
		c.apply(t, resets)
		for _, u := range uses {
			if !u.ends {
				continue
			}
			if err := waitEnd(u.conn); !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("%s: recv gives %v, want ECONNABORTED", u.name, err)
			}
		}
		for _, u := range uses {
			if u.ends {
				continue
			}
			if answer, err := u.conn.Ask(); err != nil || answer.Server != leaves.Role {
				t.Errorf("%s: %+v, %v", u.name, answer, err)
			}
		}
		for _, from := range []*lab.Host{c.Node1, c.Toolbox} {
			ask(t, from, compile.UDP, plain.Frontend(c.Lab, compile.ClusterIP, compile.IPv4), stays)
		}
	})
}

// waitEnd waits for the end of a connection, and returns what the application is told.
func waitEnd(conn *lab.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 10))
	return err
}

// TestPodLeavesSocketEdge lets a pod ask for the pod edge, by an annotation and by a label of its Namespace: then its packets
// are translated, and else its sockets.
func TestPodLeavesSocketEdge(t *testing.T) {
	t.Parallel()
	c := own(t, socketLab, socketEdge...)
	s := c.serve(t, nil, c.Local()...)
	expect := func(what string, served bool) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			for _, family := range families {
				before := counters(t, c)
				for _, protocol := range protocols {
					if _, err := c.Toolbox.Ask(protocol, netip.AddrPort{}, s.Frontend(c.Lab, compile.ClusterIP, family)); err != nil {
						return err
					}
				}
				after := counters(t, c)
				translated, flows := after.SocketTranslated-before.SocketTranslated, after.FlowNew-before.FlowNew
				if served && (translated < 2 || flows != translated) || !served && (translated != 0 || flows < 2) {
					return fmt.Errorf("%s: %s: %d sockets translated, %d flows", what, family, translated, flows)
				}
			}
			return nil
		})
	}
	pod := func(namespace, metadata string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: toolbox, namespace: %s, uid: t%s}, spec: {nodeName: node1}, status: {podIPs: [{ip: %s}, {ip: %q}]}}\n",
			namespace, metadata, c.Toolbox.IPv4, c.Toolbox.IPv6)
	}
	write := func(manifest string) {
		t.Helper()
		if err := c.agent.Write("toolbox", manifest); err != nil {
			t.Fatal(err)
		}
	}
	expect("a pod that nothing is known of", true)
	write(pod("default", `, annotations: {weir-lb.io/socket-lb: "off"}`))
	expect("the annotation", false)
	write(pod("default", ""))
	expect("a pod without", true)
	write(pod("mesh", "") + "---\n" + `{apiVersion: v1, kind: Namespace, metadata: {name: mesh, labels: {weir-lb.io/socket-lb: "off"}}}`)
	expect("the label of the Namespace", false)
	ask(t, c.Node1, compile.TCP, s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4), s.Pods...)
}

// TestNodeLocalListener gives node1 the ClusterIP as an address of its own, with a socket on exactly that, as NodeLocal
// DNSCache does: it answers processes of the node, pods whose sockets are translated and pods whose packets are. Without
// the socket the Service does.
func TestNodeLocalListener(t *testing.T) {
	t.Parallel()
	for _, edge := range []string{"all", "off"} {
		t.Run("socket-lb "+edge, func(t *testing.T) {
			t.Parallel()
			c := own(t, socketLab, "--socket-lb", edge)
			s := c.serve(t, nil, c.Local()...)
			clients := []*lab.Host{c.Toolbox}
			if edge == "all" {
				clients = append(clients, c.Node1)
			}
			for _, family := range families {
				frontend := s.Frontend(c.Lab, compile.ClusterIP, family)
				for _, from := range clients {
					ask(t, from, compile.UDP, frontend, s.Pods...)
				}
				if err := c.Node1.AddAddress("lo", frontend.Addr()); err != nil {
					t.Fatal(err)
				}
				for _, from := range clients {
					eventually(t, 15*time.Second, func() error {
						answer, err := from.Ask(compile.UDP, netip.AddrPort{}, frontend)
						if err == nil && answer.Server == "cache" {
							t.Errorf("%s is answered by a socket that is not there", from.Role)
						}
						return err
					})
				}
				cache, err := c.Node1.ServeAt("cache", frontend)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { cache.Close() })
				for _, from := range clients {
					for _, protocol := range protocols {
						eventually(t, 15*time.Second, func() error {
							answer, err := from.Ask(protocol, netip.AddrPort{}, frontend)
							if err == nil && answer.Server != "cache" {
								err = fmt.Errorf("%s answers", answer.Server)
							}
							return err
						})
					}
				}
			}
		})
	}
}
