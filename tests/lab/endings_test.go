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

// dialEverywhere opens a flow to every frontend, from a pod of each node and from outside, and establishes it.
func dialEverywhere(t *testing.T, c *cluster, s lab.Service, protocol compile.Protocol) []*lab.Conn {
	t.Helper()
	var conns []*lab.Conn
	for _, kind := range frontendKinds {
		for _, family := range families {
			for _, from := range []*lab.Host{c.Client, c.Toolbox, c.Remote()[1]} {
				conns = append(conns, dial(t, from, protocol, netip.AddrPort{}, s.Frontend(c.Lab, kind, family)))
			}
		}
	}
	for range 2 {
		askAtOnce(t, conns)
	}
	return conns
}

// expectMoved expects every flow to be answered by the host soon, without the client's doing anything.
func expectMoved(t *testing.T, conns []*lab.Conn, host *lab.Host) {
	t.Helper()
	for _, conn := range conns {
		eventually(t, 10*time.Second, func() error {
			answer, err := conn.AskWithin(300 * time.Millisecond)
			if err == nil && answer.Server != host.Role {
				err = fmt.Errorf("%s answers on %s", answer.Server, conn.RemoteAddrPort())
			}
			return err
		})
	}
}

// TestUDPFlowsEnd has clients that send on and on from one port: while their endpoint terminates it serves them, when it is
// gone another does, at once (D01); also when nobody was there for a while (D02).
func TestUDPFlowsEnd(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		for _, pods := range [][2]*lab.Host{{c.Local()[0], c.Remote()[0]}, {c.Remote()[0], c.Local()[0]}} {
			s := c.serve(t, lab.AllKinds, pods[0])
			conns := dialEverywhere(t, c, s, compile.UDP)
			s.Pods, s.Terminating = pods[1:], pods[:1]
			c.apply(t, s)
			time.Sleep(300 * time.Millisecond) // longer than the end of flows would take
			expectAlive(t, conns, pods[0])
			s.Terminating = nil
			c.apply(t, s)
			expectMoved(t, conns, pods[1])

			s.Pods = nil
			c.apply(t, s)
			for _, conn := range conns {
				eventually(t, 10*time.Second, func() error {
					if answer, err := conn.AskWithin(100 * time.Millisecond); err == nil {
						return fmt.Errorf("%s answers, which is no endpoint any more", answer.Server)
					}
					return nil
				})
			}
			s.Pods = pods[:1]
			c.apply(t, s)
			expectMoved(t, conns, pods[0])
		}
	})
}

// TestUDPFlowsEndWithTheService removes a Service, whose address another one gets at once.
func TestUDPFlowsEndWithTheService(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Local()[0])
		conns := dialEverywhere(t, c, s, compile.UDP)
		heir := s
		heir.Name, heir.Pods = s.Name+"-heir", c.Remote()[:1]
		if err := c.agent.Delete(s.Name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.agent.Delete(heir.Name); err != nil {
				t.Error(err)
			}
			c.write(t, s) // its own cleanup deletes it
		})
		c.apply(t, heir)
		expectMoved(t, conns, c.Remote()[0])
	})
}

// onRemoval returns what gives a Service the annotation that says what becomes of connections to removed endpoints.
func onRemoval(what string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations = map[string]string{"weir-lb.io/removed-endpoints": what} }
}

// TestConnectionsToRemovedEndpointsAreReset removes the endpoint of connections whose Service wants them reset: clients
// hear of it with their next packet, and can connect anew. Those that drain have their time.
func TestConnectionsToRemovedEndpointsAreReset(t *testing.T) {
	onTwoNodes(t, func(t *testing.T, c *cluster) {
		for _, pods := range [][2]*lab.Host{{c.Local()[0], c.Remote()[0]}, {c.Remote()[0], c.Local()[0]}} {
			reset, drain := c.newService(t, lab.AllKinds, pods[0]), c.newService(t, lab.AllKinds, pods[0])
			reset.Change, drain.Change = onRemoval("reset"), onRemoval("drain=4s")
			c.apply(t, reset)
			c.apply(t, drain)
			resets, drains := dialEverywhere(t, c, reset, compile.TCP), dialEverywhere(t, c, drain, compile.TCP)
			reset.Pods, drain.Pods = pods[1:], pods[1:]
			begin := time.Now()
			c.apply(t, reset)
			c.apply(t, drain)
			for _, conn := range resets {
				expectConnReset(t, conn)
			}
			for _, answer := range askAtOnce(t, drains) {
				if time.Since(begin) < 4*time.Second {
					expectServer(t, answer, pods[0])
				}
			}
			for _, conn := range drains {
				expectConnReset(t, conn)
			}
			if took := time.Since(begin); took < 4*time.Second {
				t.Errorf("connections that had 4 s to drain were reset after %s", took)
			}
			askEverywhere(t, c, reset, pods[1])
		}
	})
}

// expectConnReset expects a connection to be reset soon.
func expectConnReset(t *testing.T, conn *lab.Conn) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		answer, err := conn.AskWithin(time.Second)
		switch {
		case errors.Is(err, syscall.ECONNRESET):
			return nil
		case err == nil:
			return fmt.Errorf("%s answers from %s", answer.Server, conn.RemoteAddrPort())
		case errors.Is(err, syscall.EPIPE):
			return nil // it was reset after a question that nobody waited to see answered
		default:
			return err
		}
	})
}
