package dsr

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	weirmaps "github.com/weir-lb/weir/maps"
)

// cluster is a member and what it asks.
type cluster struct {
	*testing.T
	member *Member

	mu      sync.Mutex
	nodes   []*corev1.Node
	ends    compile.TunnelEnds
	changes []part // what the backends were told
	refused error  // what the server says to a patch
	patches int
	failed  error // what the backends say to being told
}

// node returns a Node that says where its tunnels come from; "-": nothing.
func node(name, value string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if value != "-" {
		n.Annotations = map[string]string{compile.AnnotationDSR: value}
	}
	return n
}

func addresses(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func newCluster(t *testing.T, on, byHand bool, nodes ...*corev1.Node) *cluster {
	c := &cluster{T: t, nodes: nodes, ends: compile.TunnelEnds{Sources: addresses("192.0.2.1", "2001:db8::1")}}
	options := Options{
		Set: &weirmaps.Set{TunnelSources: newMap(t, ebpf.Hash, 16, 3), TunnelExempt: newMap(t, ebpf.LPMTrie, 20, 5)}, Node: "node1", On: on,
		Log: zap.NewNop(), Own: c.own, Tunnels: c.tunnels, Changed: c.changed,
		Ends: func() compile.TunnelEnds { return locked(c, func() compile.TunnelEnds { return c.ends }) },
	}
	if !byHand {
		options.Annotator = c
	}
	c.member = New(options)
	return c
}

func newMap(t *testing.T, kind ebpf.MapType, key, room uint32) *ebpf.Map {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Skip("maps need root")
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: key, ValueSize: 4, MaxEntries: room, Flags: unix.BPF_F_NO_PREALLOC})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// locked does what is not to be done beside the member.
func locked[T any](c *cluster, do func() T) T {
	c.mu.Lock()
	defer c.mu.Unlock()
	return do()
}

func (c *cluster) tunnels() compile.Tunnels {
	return locked(c, func() compile.Tunnels {
		tunnels, _ := compile.ReadTunnels(c.nodes, "node1")
		return tunnels
	})
}

func (c *cluster) changed() error {
	now := part{c.member.Sends(), c.member.Takes()}
	return locked(c, func() error {
		c.changes = append(c.changes, now)
		return c.failed
	})
}

func (c *cluster) own() *corev1.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, node := range c.nodes {
		if node.Name == "node1" {
			return node
		}
	}
	return nil
}

// Annotate is of Annotator: the Node is another one then, and the member hears of it.
func (c *cluster) Annotate(_ context.Context, _, value string) error {
	refused := locked(c, func() error { c.patches++; return c.refused })
	if refused != nil {
		return refused
	}
	if value == "" {
		value = "-"
	}
	c.set(node("node1", value))
	return nil
}

// Explain is of Annotator.
func (c *cluster) Explain(err error) compile.Problem {
	return compile.Problem{Object: "Node node1", Reason: "Forbidden", Message: err.Error()}
}

// set makes a Node what it is.
func (c *cluster) set(now *corev1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, node := range c.nodes {
		if node.Name == now.Name {
			c.nodes[i] = now
		}
	}
	c.member.Touch()
}

// move gives this node other addresses.
func (c *cluster) move(sources ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends.Sources = addresses(sources...)
	c.member.Touch()
}

// count returns how often the Node was written, and the backends were told.
func (c *cluster) count() (patches, changes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.patches, len(c.changes)
}

// fail has what is asked of others fail, or not any more.
func (c *cluster) fail(refused, failed error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused, c.failed = refused, failed
}

// run lets the member live in a bubble of its own time.
func (c *cluster) run() {
	ctx, cancel := context.WithCancel(c.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.member.Run(ctx) }()
	c.Cleanup(func() { cancel(); <-done })
}

// after lets time pass, and checks what has come of it.
func (c *cluster) after(d time.Duration, value string, sends bool, sources ...string) {
	c.Helper()
	time.Sleep(d)
	synctest.Wait()
	if got, there := c.own().Annotations[compile.AnnotationDSR]; got != value && (value != "-" || there) {
		c.Errorf("the Node says %q, want %q", got, value)
	}
	if got := c.member.Sends(); got != sends {
		c.Errorf("it sends: %v, want %v", got, sends)
	}
	told := locked(c, func() []part { return c.changes })
	if now := (part{sends, c.member.Takes()}); len(told) == 0 || told[len(told)-1] != now {
		c.Errorf("the backends were told %v, want %v", told, now)
	}
	held := map[netip.Addr]bool{}
	if err := weirmaps.EachKey(c.member.options.Set.TunnelSources, func(key weirmaps.Address) { held[key.Addr()] = true }); err != nil {
		c.Fatal(err)
	}
	for _, source := range addresses(sources...) {
		if !held[source] {
			c.Errorf("tunnels from %s are not taken: %v", source, held)
		}
	}
	if len(held) != len(sources) {
		c.Errorf("tunnels are taken from %v, want %v", held, sources)
	}
}

// problem checks the only one there is; empty: there is none.
func (c *cluster) problem(want string) {
	c.Helper()
	got := fmt.Sprint(c.member.Problems())
	if want == "" && got != "[]" || !regexp.MustCompile(want).MatchString(got) {
		c.Errorf("problems are %s, want %q", got, want)
	}
}

const both = "192.0.2.1,2001:db8::1"

// TestMember: a node says where its tunnels come from, sends when others have heard of it, and follows its addresses.
func TestMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true, false, node("node1", "-"), node("node2", "192.0.2.2"), node("node3", "-"))
		c.run()
		c.after(heard-time.Millisecond, both, false, "192.0.2.2")
		c.after(time.Second, both, true, "192.0.2.2")

		c.set(node("node3", "192.0.2.3,wrong"))
		c.after(time.Second, both, true, "192.0.2.2", "192.0.2.3")

		c.move("192.0.2.1", "198.51.100.1", "2001:db8::1")
		c.after(time.Second, "192.0.2.1,198.51.100.1,2001:db8::1", false, "192.0.2.2", "192.0.2.3")
		c.after(heard, "192.0.2.1,198.51.100.1,2001:db8::1", true, "192.0.2.2", "192.0.2.3")

		c.move("192.0.2.1") // one less: the others know of it, and go on
		c.after(time.Second, "192.0.2.1", true, "192.0.2.2", "192.0.2.3")

		c.set(node("node1", "-")) // somebody has removed it
		c.set(node("node2", "-"))
		c.after(time.Second, "192.0.2.1", false, "192.0.2.3")
		c.after(heard, "192.0.2.1", true, "192.0.2.3")
		c.problem("")
		if patches, _ := c.count(); patches != 4 {
			t.Errorf("%d patches, want 4: one for each change", patches)
		}
	})
}

// TestExempt: no tunnel is for the nodes that take part, nor for pods of theirs that a bridge connects.
func TestExempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true, false, node("node1", both), node("node2", "192.0.2.2,10.1.2.9/24"), node("node3", "10.1.3.0/24"))
		c.ends.Prefixes = []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}
		c.run()
		for _, step := range []struct {
			now  *corev1.Node
			want []string
		}{
			{node("node2", "192.0.2.2,10.1.2.9/24"), []string{"192.0.2.2/32", "10.1.2.0/24"}},
			{node("node3", "2001:db8::3,fd00:3::/64"), []string{"192.0.2.2/32", "10.1.2.0/24", "2001:db8::3/128", "fd00:3::/64"}},
			{node("node2", "-"), []string{"2001:db8::3/128", "fd00:3::/64"}},
		} {
			c.set(step.now)
			time.Sleep(time.Second)
			synctest.Wait()
			held := map[string]bool{}
			if err := weirmaps.EachKey(c.member.options.Set.TunnelExempt, func(key weirmaps.PrefixKey) { held[key.Prefix().String()] = true }); err != nil {
				t.Fatal(err)
			}
			for _, prefix := range step.want {
				if !held[prefix] {
					t.Errorf("%s is not exempt: %v", prefix, held)
				}
			}
			if len(held) != len(step.want) {
				t.Errorf("exempt are %v, want %v", held, step.want)
			}
		}
		c.after(time.Second, both+",10.1.1.0/24", true, "2001:db8::3")
	})
}

// TestRestartedMember: where the Node says it already, nobody has to wait.
func TestRestartedMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true, false, node("node1", both))
		if !c.member.Sends() {
			t.Error("the backends are told something else before it runs")
		}
		c.run()
		c.after(0, both, true)
		if patches, _ := c.count(); patches != 0 {
			t.Errorf("%d patches of what is right", patches)
		}
	})
}

// TestRefused: a node that may not say where its tunnels come from sends none, says why, and tries again.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true, false, node("node1", "-"), node("node2", "192.0.2.2"))
		c.fail(errors.New("not allowed to patch nodes"), nil)
		c.run()
		c.after(time.Hour, "-", false, "192.0.2.2")
		c.problem("not allowed to patch nodes")
		if patches, _ := c.count(); patches < 30 || patches > 100 {
			t.Errorf("%d tries in an hour", patches)
		}
		c.fail(nil, nil)
		c.after(2*time.Minute, both, true, "192.0.2.2")
		c.problem("")
	})
}

// TestWithoutDSR: the annotation goes, and tunnels are taken until others have heard of it.
func TestWithoutDSR(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, false, false, node("node1", both), node("node2", "192.0.2.2"))
		key := weirmaps.AddressOf(netip.MustParseAddr("192.0.2.2"))
		if err := c.member.options.Set.TunnelSources.Put(&key, uint32(1)); err != nil {
			t.Fatal(err)
		}
		c.fail(errors.New("not allowed to patch nodes"), nil)
		c.run()
		c.after(time.Hour, both, false, "192.0.2.2") // others still send
		c.takes(true)
		c.problem("not allowed to patch nodes")
		c.fail(nil, nil)
		c.member.Touch()
		c.after(time.Second, "-", false, "192.0.2.2")
		c.takes(true)
		c.after(heard, "-", false)
		c.takes(false)
		c.problem("")

		c.set(node("node1", "")) // an empty one says nothing, and is not to stay
		c.after(time.Minute, "-", false)
		c.takes(false)
	})
}

// takes checks whether packets are taken out of tunnels.
func (c *cluster) takes(want bool) {
	c.Helper()
	if got := c.member.Takes(); got != want {
		c.Errorf("it takes packets out of tunnels: %v, want %v", got, want)
	}
}

// TestByHand: what the Node should say is told where it does not.
func TestByHand(t *testing.T) {
	bridged := []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}
	for _, test := range []struct {
		on            bool
		value, advice string
		sends         bool
	}{
		{true, "-", `not sent in tunnels, .* annotation weir-lb.io/dsr: "` + both + `,10.1.1.0/24"`, false},
		{true, "192.0.2.1", `annotation weir-lb.io/dsr: "` + both + `,10.1.1.0/24"`, false},
		{true, both, `prefixes that bridges connect here: .* annotation weir-lb.io/dsr: "` + both + `,10.1.1.0/24"`, true},
		{true, "2001:db8::1, 10.1.1.0/24, 192.0.2.1, 192.0.2.7", "", true},
		{false, "-", "", false},
		{false, "192.0.2.1", "remove it", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, test.on, true, node("node1", test.value))
			c.ends.Prefixes = bridged
			c.run()
			c.after(time.Minute, test.value, test.sends)
			c.problem(test.advice)
		})
	}
}

// TestNoNode: a Node that is not there is not written to.
func TestNoNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true, false, node("node2", "192.0.2.2"))
		c.run()
		time.Sleep(time.Minute)
		synctest.Wait()
		if patches, _ := c.count(); patches != 0 || c.member.Sends() {
			t.Errorf("%d patches; sends: %v", patches, c.member.Sends())
		}
	})
}

// TestNoRoom: as many tunnels are taken as there is room for, and what is missing is told.
func TestNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true, false, node("node1", both), node("node2", "192.0.2.2,192.0.2.22,2001:db8::2"), node("node3", "192.0.2.3"))
		c.run()
		time.Sleep(time.Minute)
		synctest.Wait()
		c.problem("come to 4 entries, and there is room for 3")
		c.set(node("node3", "-"))
		c.after(2*time.Minute, both, true, "192.0.2.2", "192.0.2.22", "2001:db8::2")
		c.problem("")
	})
}

// TestBackendsAreToldAgain: a write that fails is tried again.
func TestBackendsAreToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, true, false, node("node1", both))
		c.fail(nil, errors.New("no"))
		c.run()
		time.Sleep(time.Second)
		synctest.Wait()
		_, tries := c.count()
		c.fail(nil, nil)
		c.after(time.Minute, both, true)
		if _, changes := c.count(); tries < 1 || changes != tries+1 {
			t.Errorf("the backends were told %d times, then %d", tries, changes)
		}
	})
}
