package lab_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/tests/lab"
)

// load is traffic of every kind that goes on until stopped: requests on new connections, and long transfers.
type load struct {
	stop  context.CancelFunc
	group *errgroup.Group

	mu          sync.Mutex
	requests    int
	bytes       int64
	retransmits uint32
}

// startLoad starts it from a pod and from outside, both families, to the service's frontends.
func startLoad(c *cluster, s lab.Service) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{stop: stop, group: &errgroup.Group{}}
	for _, family := range families {
		for _, from := range []*lab.Host{c.Toolbox, c.Client} {
			to := s.Frontend(c.Lab, compile.LoadBalancer, family)
			l.group.Go(func() error { return l.transfer(ctx, from, to) })
			for _, protocol := range protocols {
				l.group.Go(func() error { return l.ask(ctx, from, protocol, to) })
			}
		}
	}
	return l
}

// ask sends requests until told to stop. Each is an error unless it is answered.
func (l *load) ask(ctx context.Context, from *lab.Host, protocol compile.Protocol, to netip.AddrPort) error {
	for ctx.Err() == nil {
		answer, err := from.Ask(protocol, netip.AddrPort{}, to)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.requests++
		l.retransmits += answer.Retransmits
		l.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// transfer sends and receives on one connection until told to stop.
func (l *load) transfer(ctx context.Context, from *lab.Host, to netip.AddrPort) error {
	conn, err := from.Dial(compile.TCP, netip.AddrPort{}, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	n, err := conn.Echo(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += n
	return err
}

// end stops the load and fails the test if anything of it failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	if err := l.group.Wait(); err != nil {
		t.Errorf("traffic failed: %v", err)
	}
	t.Logf("%d requests (%d segments sent again), %d MiB echoed", l.requests, l.retransmits, l.bytes>>20)
	if l.requests < 100 || l.bytes < 1<<20 {
		t.Errorf("%d requests and %d bytes are too few to prove anything", l.requests, l.bytes)
	}
}

// TestAgentKilled kills the agent and starts it again, several times, while traffic runs: no request fails, and what was
// there is adopted. At last it serves a change: it is the agent that is up, not only the programs.
func TestAgentKilled(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		if topology.name != "routed" && topology.name != "xdp" {
			continue
		}
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				c := own(t, options, topology.agent...)
				s := c.serve(t, lab.AllKinds, c.Web...)
				traffic := startLoad(c, s)
				for range 3 {
					time.Sleep(300 * time.Millisecond)
					if err := c.agent.Kill(); err != nil {
						t.Error(err)
					}
					time.Sleep(300 * time.Millisecond)
					restart(t, c)
				}
				time.Sleep(300 * time.Millisecond)
				traffic.end(t)
			})
		})
	}
}

// restart starts the agent and waits until it serves something new.
func restart(t *testing.T, c *cluster) {
	t.Helper()
	if err := c.agent.Start(); err != nil {
		t.Fatal(err)
	}
	s := c.serve(t, lab.AllKinds, c.Local()[0])
	ask(t, c.Client, compile.UDP, s.Frontend(c.Lab, compile.NodePort, compile.IPv6), s.Pods...)
}

// TestAgentTerminated ends the agent as a service manager does. Traffic goes on without it; a change made meanwhile is
// served by the next one, and a Service that went meanwhile is gone.
func TestAgentTerminated(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := own(t, options)
		stays, goes := c.serve(t, lab.AllKinds, c.Web...), c.serve(t, lab.AllKinds, c.Web...)
		traffic := startLoad(c, stays)
		time.Sleep(300 * time.Millisecond)
		if err := c.agent.Terminate(); err != nil {
			t.Errorf("the agent ended badly: %v", err)
		}
		if err := c.agent.Delete(goes.Name); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		restart(t, c)
		if err := c.agent.WaitGone(goes); err != nil {
			t.Error(err)
		}
		traffic.end(t)
	})
}

// TestCleanup removes everything that the agent has put on the machine, and finds nothing left of it.
func TestCleanup(t *testing.T) {
	t.Parallel()
	c := own(t, lab.Options{RealNICs: true}, xdpNative...)
	s := c.serve(t, lab.AllKinds, c.Web...)
	ask(t, c.Client, compile.TCP, s.Frontend(c.Lab, compile.NodePort, compile.IPv4), s.Pods...)
	if traces := attached(t, c); len(traces) == 0 {
		t.Fatal("no program is attached while the agent runs: looking for traces proves nothing")
	}
	state, err := status.Dir(filepath.Join(c.agent.BPFFS, "weir"))
	if err != nil {
		t.Fatal(err)
	}
	if !exists(state) {
		t.Fatalf("the agent has no state in %s: looking for it proves nothing", state)
	}
	if err := c.agent.Terminate(); err != nil {
		t.Error(err)
	}
	if output, err := c.agent.CLI("cleanup"); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if traces := attached(t, c); len(traces) > 0 {
		t.Errorf("left attached: %q", traces)
	}
	if exists(state) {
		t.Errorf("left: %s", state)
	}
	if pins := filepath.Join(c.agent.BPFFS, "weir"); exists(pins) {
		t.Errorf("left pinned: %s", pins)
	}
	if answer, err := c.Client.AskWithin(300*time.Millisecond, compile.UDP, netip.AddrPort{}, s.Frontend(c.Lab, compile.NodePort, compile.IPv4)); err == nil {
		t.Errorf("%s answers, and nothing is there to translate", answer.Server)
	}
}

// attached lists what is attached to node1's devices.
func attached(t *testing.T, c *cluster) []string {
	t.Helper()
	found, err := c.Node1.Attached()
	if err != nil {
		t.Fatal(err)
	}
	return found
}
