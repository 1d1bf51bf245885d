// Package devices follows the network devices of the node: which of them are the node edge and which lead to pods,
// what addresses they have, and which of them NodePorts answer on. It keeps the maps devices and node_addrs, and
// has programs attached.
package devices

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/loader"
	weirmaps "github.com/weir-lb/weir/maps"
)

// Attacher puts programs on devices; a *loader.Attacher does.
type Attacher interface {
	Attach(loader.Device) (loader.Attachment, error)
	Known(ifindex int) bool
	Detach(ifindex int) error
	Retain(ifindexes []int) error
}

// Options are what a Manager works with.
type Options struct {
	Set      *weirmaps.Set
	Attacher Attacher

	// Patterns are the devices of the node edge, as the operator names them: "eth0", "bond*". None: they are
	// found by what they are.
	Patterns []string

	NodePorts NodePortAddresses // on which NodePorts answer (rule N02)

	// Inside tells whether what comes in by a device of the node edge counts as inside, by its name and that of the
	// bridge it is a port of, which may be empty (rule C03). Nil: nothing does.
	Inside func(name, master string) bool

	Log *zap.Logger

	// Changed is called by Run after devices, attachments or problems may have changed. It must be quick. May be nil.
	Changed func()
}

// Manager follows the devices of one network namespace.
type Manager struct {
	options Options
	hops    *neighbours
	ready   chan struct{}

	// Owned by New and Run.
	listener *listener
	state    state
	records  *records
	attached map[int]loader.Device // as the attacher was told last
	failed   map[int]error         // to be tried again
	retryAt  time.Time
	backoff  wait.Backoff
	primary  []netip.Addr // as of the last round

	mu       sync.Mutex
	said     []netip.Addr  // primary, as it was said last
	heard    chan struct{} // holds a token while that is new
	problems []compile.Problem
	ends     compile.TunnelEnds
}

// New looks at all devices of the calling thread's network namespace and subscribes to their changes. It fails if
// the operator names devices and none of them is there.
func New(options Options) (*Manager, error) {
	for _, pattern := range options.Patterns {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("--devices: %q is no pattern like eth0 or bond*", pattern)
		}
	}
	records, last, err := readRecords(options.Set)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		options: options, ready: make(chan struct{}), heard: make(chan struct{}, 1),
		state:    state{devices: map[int]*device{}, edges: newEdges(last)},
		records:  records,
		attached: map[int]loader.Device{}, failed: map[int]error{}, backoff: freshBackoff(),
	}
	if m.hops, err = newNeighbours(options.Log); err != nil {
		return nil, err
	}
	if err := m.begin(); err != nil {
		m.hops.close()
		return nil, err
	}
	return m, nil
}

// begin subscribes to changes and takes the first look.
func (m *Manager) begin() (err error) {
	if m.listener, err = listen(); err != nil {
		return err
	}
	if err = m.state.readAll(); err == nil {
		err = m.checkPatterns()
	}
	if err != nil {
		m.listener.close()
		return err
	}
	m.restoreEdges()
	return nil
}

// freshBackoff is how long what failed waits for its next try, unless its device changes before.
func freshBackoff() wait.Backoff {
	return wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 20, Cap: 30 * time.Second}
}

// checkPatterns refuses to start where nothing is there of what the operator names.
func (m *Manager) checkPatterns() error {
	if len(m.options.Patterns) == 0 || len(m.unmatched()) < len(m.options.Patterns) {
		return nil
	}
	var names []string
	for _, d := range inOrder(m.state.devices) {
		if !d.loopback {
			names = append(names, d.name)
		}
	}
	return fmt.Errorf("--devices %s: there is no such device; choose from %s",
		strings.Join(m.options.Patterns, ","), strings.Join(names, ", "))
}

// unmatched returns the patterns that no device matches.
func (m *Manager) unmatched() []string {
	return slices.DeleteFunc(slices.Clone(m.options.Patterns), func(pattern string) bool {
		for _, d := range m.state.devices {
			if matches(d, pattern) {
				return true
			}
		}
		return false
	})
}

// restoreEdges keeps the ids of the pod edges that a predecessor has left. An entry whose device has no programs is
// of a device that is gone, and whose index another one has.
func (m *Manager) restoreEdges() {
	for _, d := range inOrder(m.state.devices) {
		held, known := m.records.devices[uint32(d.index)]
		if known && held.Edge == weirmaps.EdgePod && d.leadsAway() && m.options.Attacher.Known(d.index) {
			m.state.edges.restore(d.index, d.namespace, held.EdgeId)
		}
	}
}

// Ready is closed when Run has dealt with all devices that were there at the start.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// SetPrimary says what Node.status has as the node's addresses, in its order: NodePortAddresses.Primary needs them.
func (m *Manager) SetPrimary(addresses []netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Equal(m.said, addresses) {
		return
	}
	m.said = slices.Clone(addresses)
	select {
	case m.heard <- struct{}{}:
	default:
	}
}

// ChangeBackends says where backends of other nodes are that have come or, where it is false, left: the next hops toward
// those that are there are kept resolved. Before the first call it is not known that there are none. The map is given away.
func (m *Manager) ChangeBackends(backends map[weirmaps.Address]bool) { m.hops.follow(backends) }

// TunnelEnds returns the addresses that packets of this node get on the devices of the node edge where programs choose them,
// and the prefixes of its pods that bridges connect; nothing before Ready. It is not to be modified.
func (m *Manager) TunnelEnds() compile.TunnelEnds {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ends
}

// Problems lists what is wrong with devices: named but not there, not attached.
func (m *Manager) Problems() []compile.Problem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.problems)
}

// Run brings maps and programs up to date, and keeps them so until the context ends. It must run in the network
// namespace that New was called in: one goroutine does all work there.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { m.hops.run(ctx) })
	defer func() {
		cancel()
		beside.Wait()
		m.hops.close()
		m.listener.close()
	}()
	if err := m.options.Attacher.Retain(m.indices()); err != nil {
		m.options.Log.Error("forget devices that are gone", zap.Error(err))
	}
	m.converge(m.indices())
	close(m.ready)
	for {
		var retry <-chan time.Time
		if len(m.failed) > 0 {
			retry = time.After(time.Until(m.retryAt))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-retry:
			m.converge(nil)
		case <-m.heard:
			m.converge(nil)
		case n := <-m.listener.heard:
			touched, err := m.take(n)
			if err != nil {
				return err
			}
			m.converge(touched)
		}
	}
}

// indices returns the indices of all devices.
func (m *Manager) indices() []int {
	var indices []int
	for _, d := range inOrder(m.state.devices) {
		indices = append(indices, d.index)
	}
	return indices
}

// take takes in a notification and those that wait behind it. After an error, which says that some are lost, it looks
// at everything anew.
func (m *Manager) take(n notification) (touched []int, err error) {
	for {
		if n.err != nil {
			return m.startAnew(n.err)
		}
		for _, message := range n.messages {
			about, err := m.state.apply(message)
			if err != nil {
				return m.startAnew(err)
			}
			touched = append(touched, about...)
		}
		select {
		case n = <-m.listener.heard:
		default:
			return touched, nil
		}
	}
}

// startAnew subscribes again and reads everything. Notifications that the old socket still holds are older than what is
// read, and must not be taken for newer.
func (m *Manager) startAnew(why error) (touched []int, err error) {
	m.options.Log.Warn("device changes were lost: looking at all devices anew", zap.Error(why))
	fresh, err := listen()
	if err != nil {
		return nil, err
	}
	m.listener.close()
	m.listener = fresh
	before := m.indices()
	if err := m.state.readAll(); err != nil {
		return nil, err
	}
	return append(before, m.indices()...), nil
}
