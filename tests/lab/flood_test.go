package lab_test

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// defaultEmbryos is what --max-embryos is by default: halves, two for each connection.
const defaultEmbryos = 131072

// TestSYNFlood sends ten times as many SYNs of nobody as there is room for connections that are not established: no
// established one is lost, and new clients are served while it goes on. The flood is to a service whose backend is on
// this node, and to one whose backend is elsewhere, for which it takes the source ports.
func TestSYNFlood(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		const embryos = 4096
		c := own(t, options, "--max-embryos", strconv.Itoa(embryos))
		for _, pod := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			for _, family := range families {
				// Slow enough for the table to hold what the last tenth of a second brought.
				testFlood(t, c, pod, family, lab.Flood{Count: 10 * embryos / 2, Rate: 10 * embryos / 2, Limit: time.Minute})
			}
		}
	})
}

// TestSYNFloodOfDefaultSize is the same with the table's default size, as fast as this machine can.
func TestSYNFloodOfDefaultSize(t *testing.T) {
	t.Parallel()
	c := own(t, lab.Options{}, "--max-embryos", strconv.Itoa(defaultEmbryos))
	testFlood(t, c, c.Local()[0], compile.IPv4, lab.Flood{Count: 10 * defaultEmbryos / 2, Limit: time.Minute})
}

func testFlood(t *testing.T, c *cluster, pod *lab.Host, family compile.Family, flood lab.Flood) {
	t.Helper()
	s := c.serve(t, lab.AllKinds, pod)
	flood.To = s.Frontend(c.Lab, compile.LoadBalancer, family)
	established := connectFromBoth(t, c, s)
	before := counters(t, c)
	var (
		sent int
		took time.Duration
	)
	var group errgroup.Group
	group.Go(func() (err error) {
		begin := time.Now()
		sent, err = c.Client.Flood(flood)
		took = time.Since(begin)
		return err
	})
	over := make(chan error, 1)
	go func() { over <- group.Wait() }()
	asked, failed := askUntil(t, c, flood.To, over)
	after := counters(t, c)
	t.Logf("%s %s: %d SYNs in %s opened %d flows; %d of %d new clients failed meanwhile; %d flows found no source port",
		pod.Role, family, sent, took.Round(time.Millisecond), after.FlowNew-before.FlowNew, failed, asked,
		after.DropSnatPortsExhausted-before.DropSnatPortsExhausted)
	if sent < flood.Count || after.FlowNew-before.FlowNew < uint64(flood.Count)*9/10 {
		t.Errorf("%d SYNs of %d sent, %d flows opened: no flood", sent, flood.Count, after.FlowNew-before.FlowNew)
	}
	if failed > asked/20 {
		t.Errorf("%s %s: %d of %d new clients were not served", pod.Role, family, failed, asked)
	}
	expectAlive(t, established, pod)
}

// connectFromBoth connects a pod and the client to the service, often.
func connectFromBoth(t *testing.T, c *cluster, s lab.Service) []*lab.Conn {
	t.Helper()
	var conns []*lab.Conn
	for range 10 {
		for _, from := range []*lab.Host{c.Client, c.Toolbox} {
			for _, family := range families {
				conn := dial(t, from, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.LoadBalancer, family))
				askOn(t, conn)
				conns = append(conns, conn)
			}
		}
	}
	return conns
}

// askUntil asks as new clients, from outside and from a pod, until something is over, and counts those in vain.
func askUntil(t *testing.T, c *cluster, to netip.AddrPort, over <-chan error) (asked, failed int) {
	t.Helper()
	for {
		for _, from := range []*lab.Host{c.Client, c.Toolbox} {
			asked++
			if _, err := from.Ask(compile.TCP, netip.AddrPort{}, to); err != nil {
				t.Logf("%s: %v", from.Role, err)
				failed++
			}
		}
		select {
		case err := <-over:
			if err != nil {
				t.Fatal(err)
			}
			return asked, failed
		case <-time.After(5 * time.Millisecond):
		}
	}
}
