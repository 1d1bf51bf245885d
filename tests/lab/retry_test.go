package lab_test

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// onFailingBackends runs a test with a service that has a backend on either node, in labs that differ in how those are
// reached. Nothing else may use the lab: a fault is everybody's.
func onFailingBackends(t *testing.T, test func(t *testing.T, c *cluster, s lab.Service)) {
	t.Helper()
	t.Parallel()
	for _, topology := range topologies {
		switch topology.name {
		case "routed", "overlay", "clsact", "xdp":
		default:
			continue
		}
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				c := own(t, options, topology.agent...)
				s := c.serve(t, lab.AllKinds, c.Local()[0], c.Remote()[0])
				for _, conn := range connectAtOnce(t, askers(c, s), 8) { // who dies has been alive: neighbours are resolved
					askOn(t, conn)
				}
				test(t, c, s)
			})
		})
	}
}

// A client whose backend is silent is served by another one when it sends its SYN for the second time.
func TestSilentBackend(t *testing.T) {
	onFailingBackends(t, func(t *testing.T, c *cluster, s lab.Service) {
		for i, failing := range s.Pods {
			recovers := fail(t, failing, lab.Silent)
			expectServedAtSecondTry(t, c, s, s.Pods[1-i])
			recovers()
		}
	})
}

// So is one whose backend's node has died without a word, which nobody else knows yet.
func TestDeadNode(t *testing.T) {
	onFailingBackends(t, func(t *testing.T, c *cluster, s lab.Service) {
		recovers := fail(t, c.Node2, lab.Dead)
		expectServedAtSecondTry(t, c, s, c.Local()[0])
		recovers()
	})
}

// A backend that answers after a second and a half is too late: the other one has the connection by then, and keeps it;
// the late one is reset.
func TestLateBackend(t *testing.T) {
	onFailingBackends(t, func(t *testing.T, c *cluster, s lab.Service) {
		for i, failing := range s.Pods {
			recovers := fail(t, failing, lab.Late)
			before := counters(t, c)
			conns := expectServedAtSecondTry(t, c, s, s.Pods[1-i])
			eventually(t, 10*time.Second, func() error {
				after := counters(t, c)
				moved, lost := after.FlowMoved-before.FlowMoved, after.DropLostTry-before.DropLostTry
				if lost < moved || after.RejectTcpReset-before.RejectTcpReset < moved {
					return fmt.Errorf("%d flows moved, %d late answers were dropped, %d reset", moved, lost,
						after.RejectTcpReset-before.RejectTcpReset)
				}
				return nil
			})
			for _, conn := range conns {
				expectServer(t, askOn(t, conn), s.Pods[1-i])
			}
			recovers()
		}
	})
}

// A client is not told that the backend asked second cannot be reached: the first one answers yet. Of the first one it is
// told, at once.
func TestUnreachableRetry(t *testing.T) {
	onFailingBackends(t, func(t *testing.T, c *cluster, s lab.Service) {
		for i, late := range s.Pods {
			answers, recovers := fail(t, late, lab.Late), fail(t, s.Pods[1-i], lab.Unreachable)
			before := counters(t, c)
			served := 0
			for _, attempt := range attemptAtOnce(askers(c, s), 6) {
				if attempt.err == nil {
					expectServer(t, askOn(t, attempt.conn), late)
					served++
				} else if attempt.took > 900*time.Millisecond {
					t.Errorf("after %s: %v", attempt.took, attempt.err)
				}
			}
			if kept := counters(t, c).DropIcmpTry - before.DropIcmpTry; served == 0 || kept == 0 {
				t.Errorf("%d are served, and %d errors were kept from them", served, kept)
			}
			answers()
			recovers()
		}
	})
}

// attempt is a connection of a client, or why there is none.
type attempt struct {
	conn *lab.Conn
	err  error
	took time.Duration
}

// attemptAtOnce has each client connect that many times, all at once.
func attemptAtOnce(askers []asker, each int) []attempt {
	attempts := make([]attempt, len(askers)*each)
	var group sync.WaitGroup
	for i := range attempts {
		group.Go(func() {
			begin := time.Now()
			conn, err := askers[i/each].from.Dial(compile.TCP, netip.AddrPort{}, askers[i/each].to)
			attempts[i] = attempt{conn, err, time.Since(begin)}
		})
	}
	group.Wait()
	return attempts
}

// asker is a client of a service, under one of its addresses.
type asker struct {
	from *lab.Host
	to   netip.AddrPort
}

// askers are a client outside and a pod, in both families.
func askers(c *cluster, s lab.Service) []asker {
	var all []asker
	for _, family := range families {
		all = append(all,
			asker{c.Client, s.Frontend(c.Lab, compile.LoadBalancer, family)},
			asker{c.Toolbox, s.Frontend(c.Lab, compile.ClusterIP, family)})
	}
	return all
}

// expectServedAtSecondTry connects clients to a service of which one backend fails, until each has happened upon that
// a few times: all are served by the other one, at the latest by their second SYN.
func expectServedAtSecondTry(t *testing.T, c *cluster, s lab.Service, serves *lab.Host) []*lab.Conn {
	t.Helper()
	var all []*lab.Conn
	retried := make(map[asker]uint32)
	for round := 0; round < 8 && !everyoneRetried(c, s, retried); round++ {
		conns := connectAtOnce(t, askers(c, s), 8)
		for i, conn := range conns {
			asker := askers(c, s)[i/8]
			answer := askOn(t, conn)
			expectServer(t, answer, serves)
			if answer.Retransmits > 1 {
				t.Errorf("%s to %s: %d segments sent again, not one at most", asker.from.Role, asker.to, answer.Retransmits)
			}
			retried[asker] += answer.Retransmits
		}
		all = append(all, conns...)
	}
	if !everyoneRetried(c, s, retried) {
		t.Errorf("of %d connections these were made by a second SYN: %v", len(all), retried)
	}
	return all
}

// everyoneRetried tells whether each of the clients has made a few of its connections by a second SYN.
func everyoneRetried(c *cluster, s lab.Service, retried map[asker]uint32) bool {
	for _, asker := range askers(c, s) {
		if retried[asker] < 2 {
			return false
		}
	}
	return true
}

// connectAtOnce makes that many connections for each client, all at the same time.
func connectAtOnce(t *testing.T, askers []asker, each int) []*lab.Conn {
	t.Helper()
	conns := make([]*lab.Conn, len(askers)*each)
	var group errgroup.Group
	for i := range conns {
		group.Go(func() (err error) {
			conns[i], err = askers[i/each].from.Dial(compile.TCP, netip.AddrPort{}, askers[i/each].to)
			return err
		})
	}
	err := group.Wait()
	for _, conn := range conns {
		if conn != nil {
			t.Cleanup(func() { conn.Close() })
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return conns
}
