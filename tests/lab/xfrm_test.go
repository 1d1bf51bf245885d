package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestXFRMPolicies adds policies about a backend on the other node. One that blocks it is obeyed, by new connections and by
// those that are there; one that is about somebody else's packets to it hinders nobody, though the kernel has to be
// asked about each: the stack forwards them, from the node's address.
func TestXFRMPolicies(t *testing.T) {
	t.Parallel()
	for _, l := range uplinkLabs {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, l.options, func(t *testing.T, options lab.Options) {
				c := own(t, options, l.agent...)
				for _, family := range families {
					t.Run(family.String(), func(t *testing.T) { testPolicies(t, c, family) })
				}
			})
		})
	}
}

func testPolicies(t *testing.T, c *cluster, family compile.Family) {
	backend := c.Remote()[0]
	s := c.serve(t, lab.AllKinds, backend)
	anybody, somebody := netip.IPv4Unspecified(), netip.MustParseAddr("192.0.2.99")
	if family == compile.IPv6 {
		anybody, somebody = netip.IPv6Unspecified(), netip.MustParseAddr("2001:db8:1::99")
	}
	to := s.Frontend(c.Lab, compile.LoadBalancer, family)
	stream := dial(t, c.Client, compile.TCP, netip.AddrPort{}, to)
	datagrams := dial(t, c.Client, compile.UDP, netip.AddrPort{}, to)
	for range 2 {
		askOn(t, stream)
		askOn(t, datagrams)
	}

	// Whatever is meant for the backend is blocked.
	undo := addPolicy(t, c, anybody, backend.Addr(family))
	before := blocked(t, c)
	for _, kind := range frontendKinds {
		for _, protocol := range protocols {
			if answer, err := c.Client.AskWithin(200*time.Millisecond, protocol, netip.AddrPort{}, s.Frontend(c.Lab, kind, family)); err == nil {
				t.Errorf("%s by %s: %s answers, which a policy blocks", kind, protocol, answer.Server)
			}
		}
	}
	for _, conn := range []*lab.Conn{stream, datagrams} {
		if answer, err := conn.AskWithin(300 * time.Millisecond); err == nil {
			t.Errorf("on a connection from before: %s answers, which a policy blocks", answer.Server)
		}
	}
	if after := blocked(t, c); after == before {
		t.Error("the kernel's policies have blocked nothing: they were not asked")
	}
	undo()
	datagrams = dial(t, c.Client, compile.UDP, netip.AddrPort{}, to)
	askOn(t, datagrams)

	// What is blocked is somebody else's.
	undo = addPolicy(t, c, somebody, backend.Addr(family))
	for _, kind := range frontendKinds {
		for _, protocol := range protocols {
			answer := ask(t, c.Client, protocol, s.Frontend(c.Lab, kind, family), backend)
			if want := c.Inner(family); answer.Client.Addr() != want {
				t.Errorf("%s by %s: the backend sees %s, want the node's address %s", kind, protocol, answer.Client, want)
			}
		}
	}
	if _, err := datagrams.AskWithin(300 * time.Millisecond); err == nil {
		t.Error("a flow from before the policy goes on: it is redirected around it")
	}
	askOn(t, datagrams)
	transfer(t, c.Client, to)
	going := dial(t, c.Client, compile.TCP, netip.AddrPort{}, to)
	askOn(t, going)
	undo()
	askOn(t, going)
	ask(t, c.Client, compile.TCP, to, backend)
}

// addPolicy adds a policy to node1, and waits until the programs know.
func addPolicy(t *testing.T, c *cluster, from, to netip.Addr) (undo func()) {
	t.Helper()
	remove, err := c.Node1.AddPolicy(from, to)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.agent.WaitPolicies(1); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := remove(); err != nil {
			t.Fatal(err)
		}
		if err := c.agent.WaitPolicies(0); err != nil {
			t.Fatal(err)
		}
	}
}

// blocked counts what policies have blocked on node1.
func blocked(t *testing.T, c *cluster) int {
	t.Helper()
	count, err := c.Node1.Blocked()
	if err != nil {
		t.Fatal(err)
	}
	return count
}
