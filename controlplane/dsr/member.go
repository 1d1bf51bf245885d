// Package dsr makes this node one of those that send each other packets in tunnels, so that a backend's node answers the
// client itself (direct server return).
//
// A node that takes part says so by an annotation of its Node (compile.AnnotationDSR): the addresses that its tunnels come
// from. Others take packets out of tunnels from those addresses alone, and send this node packets for its endpoints. So a
// node writes it when its programs and maps are in place, and sends nothing in tunnels before others have had the time to
// hear of all addresses that its tunnels may come from. While that is not so, and to nodes without the annotation, SNAT
// does what it does without DSR. One that takes part no more goes on taking packets out of tunnels until others have had
// the time to hear of that.
package dsr

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/weir-lb/weir/controlplane/compile"
	weirmaps "github.com/weir-lb/weir/maps"
)

const (
	// heard is after how long other nodes have heard of an annotation.
	heard = 2 * time.Second
	// pause is the shortest time between two looks at what has changed.
	pause = 50 * time.Millisecond
)

// Annotator writes an annotation of this node's Node; an empty value removes it.
type Annotator interface {
	Annotate(ctx context.Context, key, value string) error
	Explain(err error) compile.Problem
}

// Options are what a Member works with.
type Options struct {
	Set     *weirmaps.Set
	Node    string
	On      bool                   // else this node takes no part, and says so
	Tunnels func() compile.Tunnels // what the Nodes say; not asked where this one takes no part
	Own     func() *corev1.Node    // nil: it is not known
	Ends    func() compile.TunnelEnds
	Log     *zap.Logger

	// Changed brings the backends up to date when the answer of Sends or Takes is another one.
	Changed func() error

	// Annotator is nil where Nodes are written by hand.
	Annotator Annotator
}

// Member is this node among those that take part. It is the only writer of the maps tunnel_sources and tunnel_exempt.
type Member struct {
	options Options
	touched chan struct{} // holds a token when there is something to look at
	backoff wait.Backoff

	// Owned by Run.
	sources set[weirmaps.Address]
	exempt  set[weirmaps.PrefixKey]
	told    *part  // what the backends know; nil: nothing
	failure string // that was logged last

	mu       sync.Mutex
	running  bool
	said     map[netip.Addr]time.Time // what the Node says, and since when; zero: it did when Run began
	last     time.Time                // when it said something last, of a node that takes no part
	problems []compile.Problem
}

// part is how a node takes part at the moment.
type part struct{ sends, takes bool }

// New returns a member. Nothing happens until Run.
func New(options Options) *Member {
	return &Member{
		options: options, touched: make(chan struct{}, 1), backoff: freshBackoff(),
		sources: set[weirmaps.Address]{name: "tunnel_sources", m: options.Set.TunnelSources},
		exempt:  set[weirmaps.PrefixKey]{name: "tunnel_exempt", m: options.Set.TunnelExempt},
	}
}

// freshBackoff is how long what failed waits for its next try, unless something changes before.
func freshBackoff() wait.Backoff {
	return wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 20, Cap: time.Minute}
}

// Touch says that Nodes or addresses of this node may have changed.
func (m *Member) Touch() {
	select {
	case m.touched <- struct{}{}:
	default:
	}
}

// Sends tells whether this node may send packets in tunnels: others know where those come from. Before Run that is so if
// the Node says something: the backends stay as a predecessor has left them.
func (m *Member) Sends() bool {
	now, _ := m.partAt(time.Now())
	return now.sends
}

// Takes tells whether this node takes packets out of tunnels: it takes part, or others may not have heard that it does no
// more.
func (m *Member) Takes() bool {
	now, _ := m.partAt(time.Now())
	return now.takes
}

// partAt tells how the node takes part, and for how long that is so; 0: until something changes.
func (m *Member) partAt(now time.Time) (part, time.Duration) {
	if !m.options.On {
		return m.leavingAt(now)
	}
	own, sources := m.options.Tunnels().Own, m.options.Ends().Sources
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hear(own.Sources, now)
	if !own.Covers(sources) {
		return part{takes: true}, 0
	}
	wait := time.Duration(0)
	for _, source := range sources {
		wait = max(wait, m.said[source].Add(heard).Sub(now))
	}
	return part{sends: wait <= 0, takes: true}, wait
}

// hear takes in what the Node says.
func (m *Member) hear(own []netip.Addr, now time.Time) {
	said := make(map[netip.Addr]time.Time, len(own))
	for _, address := range own {
		since, known := m.said[address]
		if !known && m.running {
			since = now
		}
		said[address] = since
	}
	m.said = said
}

// leavingAt is partAt of a node that takes no part.
func (m *Member) leavingAt(now time.Time) (part, time.Duration) {
	_, there := m.annotation()
	m.mu.Lock()
	defer m.mu.Unlock()
	if there {
		m.last = now
		return part{takes: true}, 0
	}
	left := m.last.Add(heard).Sub(now)
	return part{takes: left > 0}, max(left, 0)
}

// annotation returns what this node's Node says.
func (m *Member) annotation() (value string, there bool) {
	node := m.options.Own()
	if node == nil {
		return "", false
	}
	value, there = node.Annotations[compile.AnnotationDSR]
	return value, there
}

// Run keeps maps and annotation until the context ends. It is to be called when this node's own maps and programs are in
// place: others send it packets from then on.
func (m *Member) Run(ctx context.Context) error {
	m.partAt(time.Now())
	m.mu.Lock()
	m.running = true
	m.mu.Unlock()
	for {
		next := m.look(ctx)
		var again <-chan time.Time
		if next > 0 {
			again = time.After(next)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			continue
		case <-m.touched:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// look brings everything up to date. It returns after how long it is to look again; 0: not before something changes.
func (m *Member) look(ctx context.Context) time.Duration {
	before, _ := m.partAt(time.Now()) // what the Node says before it is written
	var problems []compile.Problem
	failed := m.admit(before.takes, &problems)
	if failed == nil {
		failed = m.announce(ctx, &problems)
	}
	now, next := m.partAt(time.Now())
	failed = errors.Join(failed, m.tell(now))
	m.mu.Lock()
	m.problems = problems
	m.mu.Unlock()
	if failed == nil {
		m.backoff, m.failure = freshBackoff(), ""
		return next
	}
	retry := m.backoff.Step()
	if failed.Error() != m.failure && ctx.Err() == nil {
		m.failure = failed.Error()
		m.options.Log.Error("take part in DSR", zap.Error(failed), zap.Duration("retry", retry))
	}
	if next > 0 {
		return min(next, retry)
	}
	return retry
}

// tell has the backends brought up to date, if they are not.
func (m *Member) tell(now part) error {
	if m.told != nil && *m.told == now {
		return nil
	}
	if err := m.options.Changed(); err != nil {
		return err
	}
	m.told = &now
	return nil
}

// admit makes the maps hold the addresses that tunnels of others come from, and the clients that no tunnel is for. A node
// that takes part no more leaves them as they are as long as it takes packets.
func (m *Member) admit(takes bool, problems *[]compile.Problem) error {
	if !m.options.On && takes {
		return nil
	}
	sources, exempt := map[weirmaps.Address]struct{}{}, map[weirmaps.PrefixKey]struct{}{}
	if m.options.On {
		tunnels := m.options.Tunnels()
		for address := range tunnels.Sources {
			sources[weirmaps.AddressOf(address)] = struct{}{}
		}
		for prefix := range tunnels.Exempt {
			exempt[weirmaps.PrefixKeyOf(prefix)] = struct{}{}
		}
	}
	return errors.Join(m.sources.hold(sources, problems), m.exempt.hold(exempt, problems))
}

// Problems lists what keeps this node from taking part.
func (m *Member) Problems() []compile.Problem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.problems)
}
