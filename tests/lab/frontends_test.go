package lab_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// snatMin and snatMax are the default of --snat-ports.
const (
	snatMin = 61000
	snatMax = 65535
)

var frontendKinds = append([]compile.FrontendKind{compile.ClusterIP}, lab.AllKinds...)

// TestFrontends asks every kind of frontend, from a pod and from outside, for a backend on this node and on another,
// and checks which address the backend sees: C01, C06, N01, N05, L01, L07, L08, L10, P04.
func TestFrontends(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		local := c.serve(t, lab.AllKinds, c.Local()...)
		remote := c.serve(t, lab.AllKinds, c.Remote()...)
		for _, kind := range frontendKinds {
			for _, family := range families {
				for _, protocol := range protocols {
					t.Run(fmt.Sprintf("%s/%s/%s", kind, family, protocol), func(t *testing.T) {
						testFrontend(t, c, local, kind, family, protocol)
						testFrontend(t, c, remote, kind, family, protocol)
					})
				}
			}
		}
	})
}

// testFrontend asks one frontend from both sides.
func testFrontend(t *testing.T, c *cluster, s lab.Service, kind compile.FrontendKind, family compile.Family, protocol compile.Protocol) {
	t.Helper()
	to := s.Frontend(c.Lab, kind, family)
	inside := ask(t, c.Toolbox, protocol, to, s.Pods...)
	if inside.Client.Addr() != c.Toolbox.Addr(family) {
		t.Errorf("from a pod: the backend sees %s, want the pod's own address", inside.Client)
	}
	outside := ask(t, c.Client, protocol, to, s.Pods...)
	if s.Pods[0] == c.Local()[0] {
		if outside.Client.Addr() != c.Client.Addr(family) {
			t.Errorf("from outside, local backend: it sees %s, want the client's own address", outside.Client)
		}
		return
	}
	port := outside.Client.Port()
	if outside.Client.Addr() != c.Inner(family) || port < snatMin || port > snatMax {
		t.Errorf("from outside, remote backend: it sees %s, want %s and a port of the SNAT range", outside.Client, c.Inner(family))
	}
}

// TestSpread asks often, on connections of their own, and expects every backend to be used: C07.
func TestSpread(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Web...)
		for _, family := range families {
			for _, from := range []*lab.Host{c.Toolbox, c.Client} {
				testSpread(t, from, s.Frontend(c.Lab, compile.LoadBalancer, family), s.Pods)
			}
		}
	})
}

func testSpread(t *testing.T, from *lab.Host, to netip.AddrPort, pods []*lab.Host) {
	t.Helper()
	const requests = 200
	served := map[string]int{}
	for range requests {
		answer, err := from.Ask(compile.UDP, netip.AddrPort{}, to)
		if err != nil {
			t.Fatal(err)
		}
		served[answer.Server]++
	}
	// A fair share is 50 of 200, and its standard deviation 6: this bound fails by chance once in ten million runs.
	for _, pod := range pods {
		if n := served[pod.Role]; n < requests/len(pods)/3 {
			t.Errorf("%s: %s answered %d of %d requests: %v", from.Role, pod.Role, n, requests, served)
		}
	}
}

// TestConnectionStays asks often on one connection, and expects one backend: X01.
func TestConnectionStays(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Web...)
		for _, family := range families {
			for _, protocol := range protocols {
				for _, from := range []*lab.Host{c.Toolbox, c.Client} {
					testConnectionStays(t, from, protocol, s.Frontend(c.Lab, compile.ExternalIP, family))
				}
			}
		}
	})
}

func testConnectionStays(t *testing.T, from *lab.Host, protocol compile.Protocol, to netip.AddrPort) {
	t.Helper()
	conn := dial(t, from, protocol, netip.AddrPort{}, to)
	first := askOn(t, conn)
	for range 20 {
		if next := askOn(t, conn); next.Server != first.Server || next.Client != first.Client {
			t.Fatalf("%s to %s by %s: %+v answered, then %+v", from.Role, to, protocol, first, next)
		}
	}
}

// dial connects, until the test ends.
func dial(t *testing.T, from *lab.Host, protocol compile.Protocol, local, to netip.AddrPort) *lab.Conn {
	t.Helper()
	conn, err := from.Dial(protocol, local, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// askOn asks on a connection that is there.
func askOn(t *testing.T, conn *lab.Conn) lab.Answer {
	t.Helper()
	answer, err := conn.Ask()
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// TestManyConnections holds hundreds of connections of all kinds at once, and uses each again when all are open.
func TestManyConnections(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		const each = 50
		s := c.serve(t, lab.AllKinds, c.Web...)
		var conns []*lab.Conn
		for _, family := range families {
			for _, protocol := range protocols {
				for _, from := range []*lab.Host{c.Toolbox, c.Client} {
					for i := range each {
						to := s.Frontend(c.Lab, frontendKinds[i%len(frontendKinds)], family)
						conns = append(conns, dial(t, from, protocol, netip.AddrPort{}, to))
					}
				}
			}
		}
		before := askAtOnce(t, conns)
		after := askAtOnce(t, conns)
		for i := range conns {
			if before[i].Server != after[i].Server || before[i].Client != after[i].Client {
				t.Errorf("connection %d: %+v answered, then %+v", i, before[i], after[i])
			}
		}
	})
}

// askAtOnce asks on every connection at the same time.
func askAtOnce(t *testing.T, conns []*lab.Conn) []lab.Answer {
	t.Helper()
	answers := make([]lab.Answer, len(conns))
	var group errgroup.Group
	group.SetLimit(32) // the queues of veths and tuns hold a few hundred packets
	for i, conn := range conns {
		group.Go(func() (err error) {
			answers[i], err = conn.Ask()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return answers
}
