package hammer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/sweep"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

const (
	servicesCount = 4 // each has the VIP of its number; the others go from one to another
	vipsCount     = 8
)

// allowed is where packets to a VIP may go during some time. Every address is a backend only once.
type allowed struct {
	inside, outside map[netip.Addr]bool
	nowhere         bool
}

// with returns what either allows.
func (a *allowed) with(other *allowed) *allowed {
	both := &allowed{map[netip.Addr]bool{}, map[netip.Addr]bool{}, a.nowhere || other.nowhere}
	for _, from := range []*allowed{a, other} {
		for address := range from.inside {
			both.inside[address] = true
		}
		for address := range from.outside {
			both.outside[address] = true
		}
	}
	return both
}

// timeline is what a VIP's packets were allowed, one after the other.
type timeline struct {
	mu     sync.Mutex
	states []*allowed
}

func (l *timeline) push(state *allowed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states = append(l.states, state)
}

// now returns the position of what is allowed now.
func (l *timeline) now() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.states) - 1
}

// since returns what has been allowed from a position on.
func (l *timeline) since(position int) []*allowed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.states[position:]
}

// hammer replaces services.
type hammer struct {
	*rand.Rand
	set      *maps.Set
	applier  *apply.Applier
	sweeper  *sweep.Sweeper
	programs *loader.Programs

	services map[compile.ID]compile.Service
	owner    [vipsCount]int // the service that has the VIP; negative: none
	lines    [vipsCount]timeline
	states   [vipsCount]*allowed // what the lines end with

	hosts                     uint32 // addresses given to backends
	strikes, sweeps, restarts int
}

// newHammer makes maps so small that all is soon given out again: the arena has room for twice the tables that there
// are, so that changes need what those just before them have left.
func newHammer(t *testing.T) *hammer {
	set, err := maps.New(maps.Sizes{
		Services: 5, Frontends: 8, Backends: 128, SlotBlocks: 160, FlowsIPv4: 1024, FlowsIPv6: 1024, Embryos: 65536, Devices: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	programs, err := loader.Load(set, loader.Constants{SNATPortMin: 61000, SNATPortMax: 65535, JiffiesPerSecond: 100})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { programs.Close() })
	h := &hammer{
		Rand: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)), set: set, programs: programs,
		services: map[compile.ID]compile.Service{},
	}
	for n := range h.owner {
		h.owner[n] = n
		if n >= servicesCount {
			h.owner[n] = -1
		}
		h.states[n] = &allowed{nowhere: true}
		h.lines[n].push(h.states[n])
	}
	for n := range servicesCount {
		h.renew(n)
	}
	if err := h.restart(); err != nil {
		t.Fatal(err)
	}
	if err := h.commit(h.restart); err != nil {
		t.Fatal(err)
	}
	return h
}

func idOf(n int) compile.ID {
	return compile.ID{Namespace: "default", Name: fmt.Sprintf("s%d", n), Protocol: compile.TCP, Family: compile.IPv4}
}

func vip(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(n)}), 80)
}

// fresh returns a local backend that has never been one.
func (h *hammer) fresh() compile.Backend {
	h.hosts++
	address := netip.AddrFrom4([4]byte{10, byte(h.hosts >> 16), byte(h.hosts >> 8), byte(h.hosts)})
	return compile.Backend{Address: netip.AddrPortFrom(address, 8080), Local: true}
}

// renew gives a service other backends.
func (h *hammer) renew(n int) {
	want := compile.Service{ID: idOf(n), OutsideAlgorithm: maps.AlgorithmMaglev}
	for range 1 + h.IntN(3) {
		want.Inside = append(want.Inside, h.fresh())
	}
	for range 1 + h.IntN(3) {
		want.Outside = append(want.Outside, h.fresh())
	}
	h.services[want.ID] = want
}

// all returns the services with their frontends.
func (h *hammer) all() []compile.Service {
	var all []compile.Service
	for n := range servicesCount {
		want := h.services[idOf(n)]
		for v, owner := range h.owner {
			if owner == n {
				want.Frontends = append(want.Frontends, compile.Frontend{Kind: compile.ClusterIP, Address: vip(v)})
			}
		}
		all = append(all, want)
	}
	return all
}

// allowedAt returns where packets to a VIP shall go.
func (h *hammer) allowedAt(n int) *allowed {
	if h.owner[n] < 0 {
		return &allowed{nowhere: true}
	}
	want := h.services[idOf(h.owner[n])]
	state := &allowed{inside: map[netip.Addr]bool{}, outside: map[netip.Addr]bool{}}
	for _, b := range want.Inside {
		state.inside[b.Address.Addr()] = true
	}
	for _, b := range want.Outside {
		state.outside[b.Address.Addr()] = true
	}
	return state
}

// strike makes one change. Now and then it is a new agent that makes it.
func (h *hammer) strike() error {
	if err := h.makeRoom(); err != nil {
		return err
	}
	for range 1 + h.IntN(2) {
		h.renew(h.IntN(servicesCount))
	}
	if h.IntN(3) == 0 {
		h.owner[servicesCount+h.IntN(vipsCount-servicesCount)] = h.IntN(servicesCount+1) - 1
	}
	h.strikes++
	if h.IntN(500) == 0 {
		return h.commit(h.restart)
	}
	return h.commit(func() error { return h.check(h.applier.Apply(h.all(), nil)) })
}

// commit allows packets to go where they go and where they shall go while the maps are written, and then no more where
// they went.
func (h *hammer) commit(write func() error) error {
	for n := range h.lines {
		h.lines[n].push(h.states[n].with(h.allowedAt(n)))
	}
	if err := write(); err != nil {
		return err
	}
	for n := range h.lines {
		h.states[n] = h.allowedAt(n)
		h.lines[n].push(h.states[n])
	}
	return nil
}

// check makes problems that a write leaves, of which there should be none, an error.
func (h *hammer) check(err error) error {
	if problems := h.applier.Problems(); err == nil && len(problems) > 0 {
		return fmt.Errorf("problems: %v", problems)
	}
	return err
}

// restart lets another agent take over.
func (h *hammer) restart() (err error) {
	h.restarts++
	if h.applier, err = apply.New(h.set, zap.NewNop()); err != nil {
		return err
	}
	h.sweeper, err = sweep.New(sweep.Options{ // without timeouts: all flows end
		Set: h.set, Programs: h.programs, Applier: h.applier,
		JiffiesPerSecond: 100, Log: zap.NewNop(),
	})
	if err != nil {
		return err
	}
	return h.check(h.applier.Sync(h.all()))
}

// makeRoom sweeps until there are backend indices enough for one more change.
func (h *hammer) makeRoom() error {
	for {
		used := uint32(0)
		err := maps.Each(h.set.Backends, func(_ uint32, b maps.Backend) bool {
			if b.Generation != 0 {
				used++
			}
			return true
		})
		if err != nil || used+16 < h.set.Backends.MaxEntries() {
			return err
		}
		h.sweeps++
		if err := h.sweeper.Once(context.Background()); err != nil {
			return err
		}
	}
}
