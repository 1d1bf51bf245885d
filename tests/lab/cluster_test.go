package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
	"github.com/weir-lb/weir/tests/lab"
)

// cluster is a lab with an agent running on each of its nodes.
type cluster struct {
	*lab.Lab
	agent    *lab.Agent   // node1's
	agents   []*lab.Agent // node1's, and node2's where it has one
	services atomic.Int64 // numbers given out
	paths    sync.Mutex   // held by who needs what hosts have learned of the paths to others, or makes them forget it
}

// clusters are the labs that tests share, by what they are made of. They live until the last test has ended.
type clusters struct {
	mu     sync.Mutex
	byKind map[string]*sharedCluster
}

type sharedCluster struct {
	once    sync.Once
	cluster *cluster
	err     error
}

// shared returns the cluster that every test with these options and agent arguments uses. Its agent stays up, and
// the services of tests in it differ in their numbers.
func shared(t *testing.T, options lab.Options, args ...string) *cluster {
	t.Helper()
	key := fmt.Sprintf("%+v %v", options, args)
	sharedClusters.mu.Lock()
	entry, ok := sharedClusters.byKind[key]
	if !ok {
		entry = &sharedCluster{}
		sharedClusters.byKind[key] = entry
	}
	sharedClusters.mu.Unlock()
	entry.once.Do(func() { entry.cluster, entry.err = newCluster(options, args...) })
	if errors.Is(entry.err, lab.ErrNoWire) {
		t.Skip(entry.err)
	}
	if entry.err != nil {
		t.Fatal(entry.err)
	}
	t.Cleanup(func() { entry.cluster.explain(t) })
	return entry.cluster
}

// close removes every shared cluster.
func (c *clusters) close() error {
	var err error
	for _, entry := range c.byKind {
		if entry.cluster != nil {
			err = errors.Join(err, entry.cluster.Close())
		}
	}
	return err
}

// own makes a cluster that only the calling test uses.
func own(t *testing.T, options lab.Options, args ...string) *cluster {
	t.Helper()
	c, err := newCluster(options, args...)
	if errors.Is(err, lab.ErrNoWire) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.explain(t)
		if err := c.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	return c
}

// smallMaps are arguments of every cluster's agents, before their own: maps of the default sizes cost each a third of its
// CPU time, to make, to count and to sweep.
var smallMaps = []string{
	"--max-services", "1024", "--max-frontends", "4096", "--max-backends", "4096", "--max-slot-blocks", "32768",
	"--max-source-ranges", "1024", "--max-flows", "32768", "--max-flows-ipv6", "32768", "--max-embryos", "16384",
	"--max-affinity", "4096", "--max-devices", "1024",
}

// newCluster builds a lab and starts the agents in it.
func newCluster(options lab.Options, args ...string) (*cluster, error) {
	l, err := session.Build(options)
	if err != nil {
		return nil, err
	}
	c := &cluster{Lab: l}
	args = slices.Concat(smallMaps, args)
	for _, node := range l.Nodes() {
		if err := c.startAgent(node, args); err != nil {
			return nil, errors.Join(fmt.Errorf("agent of %s: %w", node.Role, err), l.Close())
		}
	}
	c.agent = c.agents[0]
	return c, nil
}

// startAgent starts a node's agent and waits until all is well.
func (c *cluster) startAgent(node *lab.Host, args []string) error {
	agent, err := c.NewAgentOn(node, weirBinary, args...)
	if err != nil {
		return err
	}
	c.agents = append(c.agents, agent)
	if err := agent.Start(); err != nil {
		return err
	}
	return agent.WaitHealthy()
}

// explain prints what is needed to understand a failed test.
func (c *cluster) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, agent := range c.agents {
		node := agent.Node.Role
		counters, err := agent.Counters()
		t.Logf("%s, counters (%v):%s", node, err, nonZero(fmt.Sprintf("%+v", counters)))
		status, err := agent.CLI("status")
		t.Logf("%s, weir status (%v):\n%s", node, err, status)
		t.Logf("%s, agent's log:\n%s", node, agent.LogTail())
	}
}

// nonZero leaves out the fields of a printed struct that are zero.
func nonZero(printed string) string {
	var kept []string
	for field := range strings.FieldsSeq(strings.Trim(printed, "{}")) {
		if !strings.HasSuffix(field, ":0") {
			kept = append(kept, field)
		}
	}
	return " " + strings.Join(kept, " ")
}

// serve adds a service and waits until it is served. It goes with the test.
func (c *cluster) serve(t *testing.T, kinds []compile.FrontendKind, pods ...*lab.Host) lab.Service {
	t.Helper()
	s := c.newService(t, kinds, pods...)
	c.apply(t, s)
	return s
}

// newService returns a service that is not written yet. It goes with the test.
func (c *cluster) newService(t *testing.T, kinds []compile.FrontendKind, pods ...*lab.Host) lab.Service {
	t.Helper()
	number := int(c.services.Add(1))
	s := lab.Service{Name: fmt.Sprintf("service-%d", number), Number: number, Kinds: kinds, Pods: pods}
	t.Cleanup(func() {
		if err := c.agent.Delete(s.Name); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("delete the manifest of %s: %v", s.Name, err)
		}
	})
	return s
}

// apply writes the service's manifest and waits until the maps of every node say the same.
func (c *cluster) apply(t *testing.T, s lab.Service) {
	t.Helper()
	c.write(t, s)
	for _, agent := range c.agents {
		if err := agent.WaitServed(s); err != nil {
			t.Fatal(err)
		}
	}
}

// write writes the service's manifest.
func (c *cluster) write(t *testing.T, s lab.Service) {
	t.Helper()
	manifest, err := s.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.agent.Write(s.Name, manifest); err != nil {
		t.Fatal(err)
	}
}

// ask asks a frontend and fails the test unless one of the pods answers. A segment that had to be sent again is a
// packet lost, unless this machine was just slow: then the second time is better.
func ask(t *testing.T, from *lab.Host, protocol compile.Protocol, to netip.AddrPort, pods ...*lab.Host) lab.Answer {
	t.Helper()
	answer := askOnce(t, from, protocol, to, pods)
	if answer.Retransmits == 0 {
		return answer
	}
	if answer = askOnce(t, from, protocol, to, pods); answer.Retransmits != 0 {
		t.Errorf("%s asks %s: %d segments lost, twice in a row", from.Role, to, answer.Retransmits)
	}
	return answer
}

func askOnce(t *testing.T, from *lab.Host, protocol compile.Protocol, to netip.AddrPort, pods []*lab.Host) lab.Answer {
	t.Helper()
	answer, err := from.Ask(protocol, netip.AddrPort{}, to)
	if err != nil {
		t.Fatal(err)
	}
	expectServer(t, answer, pods...)
	return answer
}

// expectServer fails the test unless one of the pods has answered.
func expectServer(t *testing.T, answer lab.Answer, pods ...*lab.Host) {
	t.Helper()
	if !slices.ContainsFunc(pods, func(h *lab.Host) bool { return h.Role == answer.Server }) {
		t.Errorf("%s answered, which is no backend", answer.Server)
	}
}

// counters reads the programs' counters.
func counters(t *testing.T, c *cluster) maps.PacketCounters {
	t.Helper()
	sum, err := c.agent.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// eventually fails the test unless f succeeds within the limit.
func eventually(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Since(begin) > limit {
			t.Fatalf("not within %s: %v", limit, err)
		}
	}
}
