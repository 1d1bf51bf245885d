package lab_test

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestLostState takes every flow away from a node, as a fresh start does, and as one node knows none of another's: a TCP
// packet in the middle of a connection finds the backend that it was made to, where the client's address is kept, since
// the table picks it again.
func TestLostState(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := own(t, options)
		s := c.serve(t, lab.AllKinds, c.Local()...)
		type live struct {
			conn   *lab.Conn
			server string
		}
		var conns []live
		for _, kind := range []compile.FrontendKind{compile.LoadBalancer, compile.ExternalIP} {
			for _, family := range families {
				for range 10 {
					conn := dial(t, c.Client, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, kind, family))
					conns = append(conns, live{conn, askOn(t, conn).Server})
				}
			}
		}
		forgetEverything(t, c)
		if err := c.agent.WaitServed(s); err != nil {
			t.Fatal(err)
		}
		for _, l := range conns {
			if answer := askOn(t, l.conn); answer.Server != l.server {
				t.Errorf("a connection to %s moved to %s", l.server, answer.Server)
			}
		}
	})
}

// forgetEverything ends the agent, removes its maps and programs, and starts a new one.
func forgetEverything(t *testing.T, c *cluster) {
	t.Helper()
	if err := c.agent.Terminate(); err != nil {
		t.Fatal(err)
	}
	if output, err := c.agent.CLI("cleanup"); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if err := c.agent.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.agent.WaitHealthy(); err != nil {
		t.Fatal(err)
	}
}
