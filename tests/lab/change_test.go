package lab_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// liveLimit is how soon a changed file must be what traffic does.
const liveLimit = 50 * time.Millisecond

// TestServiceRemoved removes a Service: no frontend is left, new connections fail, established ones go on: X01.
func TestServiceRemoved(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Web...)
		var conns []*lab.Conn
		for _, family := range families {
			for _, from := range []*lab.Host{c.Toolbox, c.Client} {
				conn := dial(t, from, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.ClusterIP, family))
				askOn(t, conn)
				conns = append(conns, conn)
			}
		}
		if err := c.agent.Delete(s.Name); err != nil {
			t.Fatal(err)
		}
		if err := c.agent.WaitGone(s); err != nil {
			t.Fatal(err)
		}
		for _, conn := range conns {
			askOn(t, conn)
		}
		for _, from := range []*lab.Host{c.Toolbox, c.Client} {
			to := s.Frontend(c.Lab, compile.LoadBalancer, compile.IPv4)
			if answer, err := from.AskWithin(300*time.Millisecond, compile.UDP, netip.AddrPort{}, to); err == nil {
				t.Errorf("%s asks %s of a removed Service: %s answers", from.Role, to, answer.Server)
			}
		}
	})
}

// TestEndpointsMoved gives a service other endpoints: TCP connections stay where they are (X01, D03), new ones go to the
// new endpoints, also from the same client.
func TestEndpointsMoved(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Local()[0], c.Remote()[0])
		type live struct {
			conn   *lab.Conn
			server string
		}
		var conns []live
		for _, family := range families {
			for _, from := range []*lab.Host{c.Toolbox, c.Client} {
				for range 4 {
					conn := dial(t, from, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.NodePort, family))
					conns = append(conns, live{conn, askOn(t, conn).Server})
				}
			}
		}
		moves := [][]*lab.Host{{c.Local()[1]}, {c.Remote()[1]}, {c.Remote()[1], c.Local()[1]}}
		for _, pods := range moves {
			s.Pods = pods
			c.apply(t, s)
			for _, family := range families {
				for _, from := range []*lab.Host{c.Toolbox, c.Client} {
					ask(t, from, compile.TCP, s.Frontend(c.Lab, compile.LoadBalancer, family), pods...)
					ask(t, from, compile.UDP, s.Frontend(c.Lab, compile.LoadBalancer, family), pods...)
				}
			}
			for _, l := range conns {
				if server := askOn(t, l.conn).Server; server != l.server {
					t.Errorf("a connection moved from %s to %s", l.server, server)
				}
			}
		}
	})
}

// TestChangeIsLiveInTime changes the one endpoint of a service again and again, and measures the time from the file's
// being there to the first answer of the new endpoint. The median counts: a pause of this machine is not Weir's.
func TestChangeIsLiveInTime(t *testing.T) {
	c := own(t, lab.Options{})
	s := c.serve(t, lab.AllKinds, c.Local()[0])
	to := s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4)
	var took []time.Duration
	for i := range 21 {
		pod := c.Web[(i+1)%len(c.Web)]
		s.Pods = []*lab.Host{pod}
		c.write(t, s)
		begin := time.Now()
		for {
			answer, err := c.Toolbox.Ask(compile.UDP, netip.AddrPort{}, to)
			if err != nil {
				t.Fatal(err)
			}
			if answer.Server == pod.Role {
				break
			}
			if time.Since(begin) > 5*time.Second {
				t.Fatalf("%s still answers, %s should", answer.Server, pod.Role)
			}
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	median, worst := took[len(took)/2], took[len(took)-1]
	t.Logf("a changed file is live after %s (median), %s (worst of %d)", median, worst, len(took))
	if median > liveLimit {
		t.Errorf("a changed file is live after %s, want at most %s", median, liveLimit)
	}
}
