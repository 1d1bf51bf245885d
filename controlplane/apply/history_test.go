package apply

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// connection is a flow that names a backend and a service for as long as it lasts.
type connection struct {
	backend    uint32
	generation uint32
	address    netip.AddrPort
	id         uint32
	service    compile.ID
}

// history is a random one, with a model of what the maps shall hold.
type history struct {
	*rand.Rand
	t       *testing.T
	set     *maps.Set
	reader  *reader
	applier *Applier
	steps   *steps
	cramped bool // there is not room for everything

	desired map[compile.ID]compile.Service
	leads   map[maps.FrontendKey]answer     // where each frontend leads
	owners  map[maps.FrontendKey]compile.ID // whose it is
	flows   []connection
	epoch   uint32

	seen map[maps.FrontendKey][]answer // during a change, in order
	held map[found]view                // that programs may be using
	ever map[found]maps.Service        // every record there has been
	log  []string
}

func newHistory(t *testing.T, seed uint64, cramped bool) *history {
	sizes := maps.Sizes{Services: 16, Frontends: 32, Backends: 64, SlotBlocks: 1200, FlowsIPv4: 16, FlowsIPv6: 16, Embryos: 16, Devices: 4}
	if cramped {
		sizes = maps.Sizes{Services: 5, Frontends: 7, Backends: 9, SlotBlocks: 90, FlowsIPv4: 16, FlowsIPv6: 16, Embryos: 16, Devices: 4}
	}
	h := &history{
		Rand: rand.New(rand.NewPCG(seed, 1)), t: t, set: newSet(t, sizes), cramped: cramped,
		ever:    map[found]maps.Service{},
		desired: map[compile.ID]compile.Service{}, leads: map[maps.FrontendKey]answer{}, owners: map[maps.FrontendKey]compile.ID{},
	}
	h.reader = newReader(t, h.set)
	h.restart()
	return h
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// fail reports what is wrong with the last of what led there.
func (h *history) fail(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("%s\nafter %d steps, the last of them:\n%q", fmt.Sprintf(format, args...), len(h.log), h.log[max(0, len(h.log)-4):])
}

func (h *history) restart() {
	h.note("restart")
	h.applier, h.steps = stepped(h.t, h.set)
	h.steps.look = h.look
	h.held = map[found]view{}
	h.applier.grace = func() error {
		h.look()
		h.held = map[found]view{}
		return nil
	}
}

// universe is every frontend that a history has.
func universe() []maps.FrontendKey {
	var keys []maps.FrontendKey
	for n := range 12 {
		keys = append(keys, vipKey(n))
	}
	return keys
}

// look is what programs do between two writes.
func (h *history) look() {
	for _, key := range universe() {
		got, err := h.reader.look(key)
		if err != nil {
			h.fail("%s: %v", key.AddrPort(), err)
		}
		if last := h.seen[key]; h.seen != nil && (len(last) == 0 || last[len(last)-1] != got.answer) {
			h.seen[key] = append(last, got.answer)
		}
		if got.answer.there {
			h.held[got.found] = got
			if other, twice := h.ever[got.found]; twice && other != got.record {
				h.fail("record %d has been another with the same generation: %+v, %+v", got.index, other, got.record)
			}
			h.ever[got.found] = got.record
		}
	}
	for _, held := range h.held {
		var record maps.Service
		if err := h.set.Services.Lookup(held.index, &record); err != nil {
			h.fail("%v", err)
		}
		if got, err := h.reader.answer(held.record, 0); record != held.record || err != nil || got != held.answer {
			h.fail("record %d was used again within a grace period: %+v, %v, was %+v", held.index, got, err, held.answer)
		}
	}
	if err := checkTargets(h.set, false); err != nil {
		h.fail("%v", err)
	}
	for _, c := range h.flows {
		var b maps.Backend
		if err := h.set.Backends.Lookup(c.backend, &b); err != nil {
			h.fail("%v", err)
		}
		if b.Generation != c.generation || netip.AddrPortFrom(b.Address.Addr(), b.Port) != c.address {
			h.fail("backend %d, which a flow names, was %s and is %+v", c.backend, c.address, b)
		}
	}
}

// random makes a service with random backends.
func (h *history) random(n int) compile.Service {
	var hosts []byte
	for host := range byte(10) {
		if h.IntN(3) == 0 {
			hosts = append(hosts, host+1)
		}
	}
	want := web(n, hosts...)
	if h.IntN(3) == 0 {
		want.AffinityTimeout = time.Hour
	}
	switch h.IntN(5) {
	case 0:
		want.Outside = nil
	case 1:
		want.OutsideAlgorithm = maps.AlgorithmRandom
	case 2:
		for i := range want.Inside {
			want.Inside[i].Local = h.IntN(2) == 0
			want.Inside[i].Tunnel = !want.Inside[i].Local && h.IntN(2) == 0
		}
	case 3:
		want.Inside = slices.Clone(want.Inside)
		for i := range want.Inside {
			want.Inside[i].Weight = 1 + h.Uint32N(3)
		}
	}
	return want
}

// desire changes what is desired of some services, and returns what differs. No two have a frontend in common, and
// none is without.
func (h *history) desire() (changed []compile.Service, removed []compile.ID) {
	next := map[compile.ID]compile.Service{}
	for id, want := range h.desired {
		next[id] = want
	}
	for range 1 + h.IntN(4) {
		want := h.random(1 + h.IntN(7))
		if old, had := next[want.ID]; had && h.IntN(3) == 0 {
			if h.IntN(3) == 0 {
				delete(next, want.ID)
				continue
			}
			want.Inside, want.Outside, want.OutsideAlgorithm = old.Inside, old.Outside, old.OutsideAlgorithm
		}
		next[want.ID] = want
	}
	h.deal(next)
	for id, want := range next {
		if old, had := h.desired[id]; !had || !old.Equal(want) {
			changed = append(changed, want)
		}
	}
	for id := range h.desired {
		if _, kept := next[id]; !kept {
			removed = append(removed, id)
		}
	}
	h.desired = next
	slices.SortFunc(changed, func(a, b compile.Service) int { return a.ID.Compare(b.ID) })
	slices.SortFunc(removed, compile.ID.Compare)
	h.Shuffle(len(changed), func(i, j int) { changed[i], changed[j] = changed[j], changed[i] })
	return changed, removed
}

// deal gives frontends to the services: mostly as before, some moved, at least one each.
func (h *history) deal(next map[compile.ID]compile.Service) {
	ids := slices.SortedFunc(mapKeys(next), compile.ID.Compare)
	owner := map[int]compile.ID{}
	for n := range 12 {
		if len(ids) == 0 {
			return
		}
		was, had := h.ownerOf(n)
		_, stays := next[was]
		switch {
		case had && stays && h.IntN(6) > 0:
			owner[n] = was
		case h.IntN(3) == 0:
			owner[n] = ids[h.IntN(len(ids))]
		}
	}
	for i, id := range ids {
		var vips []int
		for n := range 12 {
			if owner[n] == id {
				vips = append(vips, n)
			}
		}
		if len(vips) == 0 { // its own, taken from whom it went to
			n := i % 12
			if loser := owner[n]; len(next[loser].Frontends) > 0 {
				delete(next, id)
				continue
			}
			owner[n] = id
			vips = []int{n}
		}
		next[id] = at(next[id], vips...)
	}
	for _, id := range ids {
		want, there := next[id]
		if !there {
			continue
		}
		want.Frontends = slices.DeleteFunc(slices.Clone(want.Frontends), func(f compile.Frontend) bool {
			return owner[int(f.Address.Addr().As4()[3])] != id
		})
		if next[id] = want; len(want.Frontends) == 0 {
			delete(next, id)
		}
	}
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

func (h *history) ownerOf(n int) (compile.ID, bool) {
	for id, want := range h.desired {
		for _, frontend := range want.Frontends {
			if frontend == vip(n) {
				return id, true
			}
		}
	}
	return compile.ID{}, false
}

// change makes a change, with Sync or Apply, and sometimes a failing write first.
func (h *history) change() {
	changed, removed := h.desire()
	before := h.leads
	h.seen = map[maps.FrontendKey][]answer{}
	err := errStopped
	for tries := 0; errors.Is(err, errStopped); tries++ {
		h.steps.left = -1
		if tries == 0 && h.IntN(4) == 0 {
			h.steps.left = h.IntN(30)
		}
		all := slices.Collect(mapValues(h.desired))
		switch {
		case tries == 0 && h.IntN(3) > 0:
			h.note("apply %v, remove %v, failing at %d", changed, removed, h.steps.left)
			err = h.applier.Apply(changed, removed)
		case tries == 0 || h.IntN(2) == 0:
			h.note("sync %v, failing at %d", all, h.steps.left)
			err = h.applier.Sync(all)
		default:
			h.restart()
			err = h.applier.Sync(all)
		}
	}
	if err != nil {
		h.fail("%v", err)
	}
	h.look()
	h.settle(h.applier.Problems())
	h.checkSeen(before)
	h.seen = nil
}

func mapValues[K comparable, V any](m map[K]V) func(func(V) bool) {
	return func(yield func(V) bool) {
		for _, value := range m {
			if !yield(value) {
				return
			}
		}
	}
}

// settle brings the model to where the change has led.
func (h *history) settle(problems []compile.Problem) {
	if len(problems) > 0 && !h.cramped {
		h.fail("problems with much room: %v", problems)
	}
	leftOut := map[string]bool{}
	for _, problem := range problems {
		leftOut[problem.Object] = true
	}
	isLeftOut := func(id compile.ID) bool { return leftOut["Service "+id.Namespace+"/"+id.Name] }
	if err := errors.Join(checkTargets(h.set, true), checkFlags(h.set, slices.Collect(mapValues(h.desired)))); err != nil {
		h.fail("%v", err)
	}
	leads, owners := map[maps.FrontendKey]answer{}, map[maps.FrontendKey]compile.ID{}
	claimed := map[maps.FrontendKey]compile.ID{}
	for id, want := range h.desired {
		for _, key := range frontendKeys(want) {
			claimed[key] = id
		}
	}
	for _, key := range universe() {
		id, wanted := claimed[key]
		was, had := h.owners[key]
		_, remains := h.desired[was]
		switch {
		case wanted && !isLeftOut(id):
			leads[key], owners[key] = expected(h.desired[id]), id
		case had && wanted && was == id, had && !wanted && remains && isLeftOut(was): // as it was before
			leads[key], owners[key] = h.leads[key], was
		}
	}
	h.leads, h.owners = leads, owners
	for _, key := range universe() {
		if got, err := h.reader.look(key); err != nil || got.answer != leads[key] {
			h.fail("%s leads to %+v, %v, want %+v; problems %v", key.AddrPort(), got.answer, err, leads[key], problems)
		}
	}
}

// checkSeen checks that each frontend went from where it led to where it leads and never anywhere else. Where there
// is no room it may have led nowhere for a while.
func (h *history) checkSeen(before map[maps.FrontendKey]answer) {
	for key, seen := range h.seen {
		way := []answer{before[key]}
		if after := h.leads[key]; after != before[key] {
			way = append(way, after)
		}
		if h.cramped {
			seen = slices.Compact(slices.DeleteFunc(slices.Clone(seen), func(a answer) bool { return a == answer{} }))
			way = slices.DeleteFunc(way, func(a answer) bool { return a == answer{} })
		}
		for len(way) > 0 && len(seen) > 0 && seen[0] != way[0] {
			way = way[1:]
		}
		if len(seen) > len(way) || !slices.Equal(seen, way[:len(seen)]) {
			h.fail("%s was to go from %+v to %+v, and led to %+v", key.AddrPort(), before[key], h.leads[key], h.seen[key])
		}
	}
}

// connect opens a flow where some frontend leads.
func (h *history) connect() {
	keys := slices.Collect(mapKeys(h.owners))
	if len(keys) == 0 {
		return
	}
	slices.SortFunc(keys, func(a, b maps.FrontendKey) int { return a.AddrPort().Compare(b.AddrPort()) })
	key := keys[h.IntN(len(keys))]
	got, err := h.reader.look(key)
	if err != nil {
		h.fail("%v", err)
	}
	at := got.record.Inside
	if at.Count == 0 {
		return
	}
	slots, err := h.reader.arena.Read(at)
	if err != nil {
		h.fail("%v", err)
	}
	c := connection{backend: slots[h.IntN(len(slots))], id: got.record.Id, service: h.owners[key]}
	var b maps.Backend
	if err := h.set.Backends.Lookup(c.backend, &b); err != nil {
		h.fail("%v", err)
	}
	c.generation, c.address = b.Generation, netip.AddrPortFrom(b.Address.Addr(), b.Port)
	h.note("connect to %s at %d", c.address, c.backend)
	h.flows = append(h.flows, c)
}

// sweep is a whole sweep of the flow tables; some flows end before it, and some while it goes on.
func (h *history) sweep() {
	end := func() {
		h.flows = slices.DeleteFunc(h.flows, func(connection) bool { return h.IntN(3) == 0 })
	}
	end()
	h.note("sweep with %d flows", len(h.flows))
	sweep, err := h.applier.BeginSweep()
	if err != nil {
		h.fail("%v", err)
	}
	h.epoch++
	for _, c := range h.flows {
		if err := errors.Join(h.set.BackendUsage.Put(c.backend, h.epoch), h.set.ServiceUsage.Put(c.id, h.epoch)); err != nil {
			h.fail("%v", err)
		}
	}
	if h.IntN(3) == 0 {
		h.change()
	}
	h.steps.left = -1
	if err := h.applier.EndSweep(sweep, h.epoch); err != nil {
		h.fail("%v", err)
	}
	h.settle(h.applier.Problems())
	h.checkNames()
}

// checkNames checks that the id of every flow is still its service's.
func (h *history) checkNames() {
	names := map[uint32]string{}
	err := maps.Each(h.set.ServiceNames, func(_ uint32, name maps.ServiceName) bool {
		names[name.Id] = name.String()
		return true
	})
	if err != nil {
		h.fail("%v", err)
	}
	for _, c := range h.flows {
		if names[c.id] != c.service.String() {
			h.fail("id %d, which a flow names, was of %s and is of %q", c.id, c.service, names[c.id])
		}
	}
}

// run lives through a number of steps and then ends tidily.
func (h *history) run(steps int) {
	for range steps {
		switch h.IntN(8) {
		case 0:
			h.restart()
			err := h.applier.Sync(slices.Collect(mapValues(h.desired)))
			problems := h.applier.Problems()
			if err != nil {
				h.fail("%v", err)
			} else if made := h.steps.made; made > 0 && len(problems) == 0 {
				h.fail("a restart wrote %d times", made)
			} else {
				h.settle(problems)
			}
		case 1, 2:
			h.sweep()
		case 3, 4:
			h.connect()
		default:
			h.change()
		}
	}
	h.flows = nil
	h.note("end")
	h.steps.left = -1
	if err := h.applier.Sync(nil); err != nil {
		h.fail("%v", err)
	}
	sweepAll(h.t, h.applier, &h.epoch)
	checkTidy(h.t, h.applier, nil)
}

// Random histories, of Sync and Apply, sweeps, flows, failures and restarts, against a model.
func TestHistories(t *testing.T) {
	for seed := range uint64(8) {
		cramped := seed%2 == 1
		t.Run(fmt.Sprintf("seed %d, cramped %v", seed, cramped), func(t *testing.T) {
			t.Parallel() // most of it is waiting for the kernel
			newHistory(t, seed, cramped).run(150)
		})
	}
}
