package apply

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// answer is where a frontend leads. The zero one is nowhere.
type answer struct {
	there       bool
	noEndpoints bool
	inside      string
	outside     string

	affinity                      uint32
	insideMembers, outsideMembers string
}

// frontendKeys returns the keys of the frontends that a service shall have.
func frontendKeys(want compile.Service) []maps.FrontendKey {
	return slices.Collect(mapKeys(frontendKinds(want)))
}

// render writes a table down, slot by slot.
func render(slots []netip.AddrPort) string {
	if len(slots) <= 16 {
		return fmt.Sprint(slots)
	}
	var text []byte // most of the time of the tests would be Sprint's
	for _, slot := range slots {
		text = append(slot.AppendTo(text), ' ')
	}
	return fmt.Sprintf("%d slots %x", len(slots), sha256.Sum256(text))
}

// expected returns what a service's frontends shall lead to.
func expected(want compile.Service) answer {
	a := answer{
		there:       true,
		noEndpoints: want.NoEndpoints,
		inside:      render(slotsOf(want.Inside, want.InsideAlgorithm)),
		outside:     render(slotsOf(want.Outside, want.OutsideAlgorithm)),
	}
	if want.AffinityTimeout > 0 {
		a.affinity = uint32(want.AffinityTimeout / time.Second)
		a.insideMembers, a.outsideMembers = render(membersOf(want.Inside)), render(membersOf(want.Outside))
	}
	return a
}

func slotsOf(list []compile.Backend, algorithm maps.Algorithm) []netip.AddrPort {
	slots := []netip.AddrPort{}
	if algorithm != maps.AlgorithmMaglev && !weighted(list) {
		return membersOf(list)
	}
	var candidates []maps.Candidate
	for _, b := range list {
		weight := b.Weight
		if !weighted(list) {
			weight = 1
		}
		candidates = append(candidates, maps.Candidate{Address: b.Address, Weight: weight})
	}
	for _, position := range maps.Maglev(candidates, 0) {
		slots = append(slots, list[position].Address)
	}
	return slots
}

func weighted(list []compile.Backend) bool {
	return slices.ContainsFunc(list, func(b compile.Backend) bool { return b.Weight != list[0].Weight })
}

// membersOf returns the addresses in their order.
func membersOf(list []compile.Backend) []netip.AddrPort {
	members := []netip.AddrPort{}
	for _, b := range list {
		members = append(members, b.Address)
	}
	return members
}

// reader finds backends as bpf/service.h does.
type reader struct {
	set   *maps.Set
	arena *maps.Arena
}

func newReader(t testing.TB, set *maps.Set) *reader {
	t.Helper()
	arena := maps.NewArena(set.Slots)
	return &reader{set, arena}
}

// found is a record as a program finds it, told apart from all others.
type found struct{ index, generation uint32 }

// view is what a record says.
type view struct {
	found
	record maps.Service
	answer answer
}

// look follows a frontend. An error is what a program would drop a packet for, or worse.
func (r *reader) look(key maps.FrontendKey) (view, error) {
	var value maps.Frontend
	if err := r.set.Frontends.Lookup(&key, &value); errors.Is(err, ebpf.ErrKeyNotExist) {
		return view{}, nil
	} else if err != nil {
		return view{}, err
	}
	v := view{found: found{value.Index(), key.Generation(value)}}
	if err := r.set.Services.Lookup(v.index, &v.record); err != nil {
		return v, err
	}
	if v.record.Generation != v.generation {
		return v, fmt.Errorf("%s names record %d, which is another", key.AddrPort(), v.index)
	}
	var err error
	v.answer, err = r.answer(v.record, maps.BackendGone)
	return v, err
}

// answer returns where a record leads. No backend may have one of these flags.
func (r *reader) answer(record maps.Service, never uint32) (answer, error) {
	inside, err := r.slots(record.Inside, never)
	if err != nil {
		return answer{}, err
	}
	outside, err := r.slots(record.Outside, never)
	a := answer{
		there: true, noEndpoints: record.Flags&maps.ServiceNoEndpoints != 0, affinity: record.AffinityTimeout,
		inside: render(inside), outside: render(outside),
	}
	if err != nil || a.affinity == 0 {
		return a, err
	}
	if a.insideMembers, err = r.members(record.InsideMembers, never); err == nil {
		a.outsideMembers, err = r.members(record.OutsideMembers, never)
	}
	return a, err
}

// members returns a list of members in order of the addresses. In the map it is in order of the indices.
func (r *reader) members(at maps.SlotRange, never uint32) (string, error) {
	members, err := r.slots(at, never)
	if err != nil {
		return "", err
	}
	if indices, err := r.arena.Read(at); err != nil || !slices.IsSorted(indices) {
		return "", fmt.Errorf("members %v are not in order: %w", indices, err)
	}
	slices.SortFunc(members, netip.AddrPort.Compare)
	return render(members), nil
}

func (r *reader) slots(at maps.SlotRange, never uint32) ([]netip.AddrPort, error) {
	indices, err := r.arena.Read(at)
	if err != nil {
		return nil, err
	}
	known := map[uint32]netip.AddrPort{}
	slots := []netip.AddrPort{}
	for _, index := range indices {
		if _, ok := known[index]; !ok {
			var b maps.Backend
			if err := r.set.Backends.Lookup(index, &b); err != nil {
				return nil, err
			}
			if b.Generation == 0 || index == 0 || b.Flags&never != 0 {
				return nil, fmt.Errorf("a slot of %v names backend %d, which is none: %+v", at, index, b)
			}
			known[index] = netip.AddrPortFrom(b.Address.Addr(), b.Port)
		}
		slots = append(slots, known[index])
	}
	return slots, nil
}

var errStopped = errors.New("stopped by the test")

// steps is a writer that lets the test look before each write, and ends the agent's life at one.
type steps struct {
	*kernelWriter
	look func()
	left int // writes until it stops; negative: never
	made int
}

// step tells whether the next write is to be made.
func (s *steps) step() error {
	if s.look != nil {
		s.look()
	}
	if s.left == 0 {
		return errStopped
	}
	s.left--
	s.made++
	return nil
}

func (s *steps) put(m *ebpf.Map, key, value any) error {
	if err := s.step(); err != nil {
		return err
	}
	return s.kernelWriter.put(m, key, value)
}

func (s *steps) lead(frontends *ebpf.Map, key maps.FrontendKey, value maps.Frontend) error {
	if err := s.step(); err != nil {
		return err
	}
	return s.kernelWriter.lead(frontends, key, value)
}

func (s *steps) delete(m *ebpf.Map, key any) error {
	if err := s.step(); err != nil {
		return err
	}
	return s.kernelWriter.delete(m, key)
}

// table is not written at once: a stopped one is half there.
func (s *steps) table(at maps.SlotRange, backends []uint32) error {
	if err := s.step(); err != nil {
		half := at.Count / 2
		return errors.Join(err, s.kernelWriter.table(maps.SlotRange{Base: at.Base, Count: half}, backends[:half]))
	}
	return s.kernelWriter.table(at, backends)
}

// stepped returns an applier whose writes the test sees. Grace periods take no time.
func stepped(t testing.TB, set *maps.Set) (*Applier, *steps) {
	t.Helper()
	a, err := open(set, zap.NewNop(), func() error { return nil }, Tunnels(func() bool { return true }))
	if err != nil {
		t.Fatal(err)
	}
	w := &steps{kernelWriter: a.kernel, left: -1}
	a.write = w
	return a, w
}

// checkTargets checks that tunnels lead to backends of this node, as their records say. Where all shall be there, none of
// those is without.
func checkTargets(set *maps.Set, all bool) error {
	there := map[uint32]maps.TunnelTarget{}
	err := maps.Each(set.TunnelTargets, func(key maps.TunnelTarget, index uint32) bool {
		there[index] = key
		return true
	})
	if err != nil {
		return err
	}
	for index, target := range there {
		var b maps.Backend
		if err := set.Backends.Lookup(index, &b); err != nil {
			return err
		}
		if target != targetOf(b) || b.Generation == 0 || b.Flags&maps.BackendLocal == 0 {
			return fmt.Errorf("a tunnel to %+v leads to backend %d, which is %+v", target, index, b)
		}
	}
	if !all {
		return nil
	}
	var missing error
	err = maps.Each(set.Backends, func(index uint32, b maps.Backend) bool {
		if _, known := there[index]; !known && b.Flags&maps.BackendLocal != 0 {
			missing = fmt.Errorf("no tunnel leads to backend %d: %+v", index, b)
		}
		return missing == nil
	})
	return errors.Join(err, missing)
}

// targetOf returns where a tunnel to a backend leads.
func targetOf(b maps.Backend) maps.TunnelTarget {
	return maps.TunnelTargetOf(netip.AddrPortFrom(b.Address.Addr(), b.Port), b.Protocol)
}

// checkFlags checks what the records of listed backends say of where they are.
func checkFlags(set *maps.Set, all []compile.Service) error {
	local, direct := map[maps.TunnelTarget]bool{}, map[maps.TunnelTarget]bool{}
	listed := map[maps.TunnelTarget]bool{}
	for _, want := range all {
		for _, b := range slices.Concat(want.Inside, want.Outside) {
			target := maps.TunnelTargetOf(b.Address, uint8(want.ID.Protocol))
			listed[target] = true
			local[target] = local[target] || b.Local
			direct[target] = direct[target] || !b.Tunnel
		}
	}
	var wrong error
	err := maps.Each(set.Backends, func(index uint32, b maps.Backend) bool {
		target := targetOf(b)
		if !listed[target] || b.Generation == 0 || b.Flags&maps.BackendGone != 0 {
			return true
		}
		tunnel := !direct[target] && !local[target]
		if b.Flags&maps.BackendLocal != 0 != local[target] || b.Flags&maps.BackendTunnel != 0 != tunnel {
			wrong = fmt.Errorf("backend %d is %+v; local %v, by tunnel %v", index, b, local[target], tunnel)
		}
		return wrong == nil
	})
	return errors.Join(err, wrong)
}

// sweepAll makes sweeps that meet no flow, so that all that leaves is given back.
func sweepAll(t testing.TB, a *Applier, epoch *uint32) {
	t.Helper()
	for range sweepsBeforeReuse + 1 {
		sweep, err := a.BeginSweep()
		if err != nil {
			t.Fatal(err)
		}
		*epoch++
		if err := a.EndSweep(sweep, *epoch); err != nil {
			t.Fatal(err)
		}
	}
}

// checkTidy checks that the maps hold what the services need and no more, and that the applier knows what is free. It is
// to be called after sweepAll.
func checkTidy(t testing.TB, a *Applier, all []compile.Service) {
	t.Helper()
	frontends, blocks := 0, uint32(0)
	backends, local := map[backendKey]struct{}{}, map[backendKey]struct{}{}
	for _, want := range all {
		frontends += len(want.Frontends)
		blocks += maps.BlocksOf(uint32(len(slotsOf(want.Inside, want.InsideAlgorithm)))) +
			maps.BlocksOf(uint32(len(slotsOf(want.Outside, want.OutsideAlgorithm))))
		if want.AffinityTimeout > 0 {
			blocks += maps.BlocksOf(uint32(len(want.Inside)))
			if !slices.Equal(membersOf(want.Inside), membersOf(want.Outside)) {
				blocks += maps.BlocksOf(uint32(len(want.Outside)))
			}
		}
		for _, b := range slices.Concat(want.Inside, want.Outside) {
			backends[backendKeyOf(b.Address, want.ID.Protocol)] = struct{}{}
			if b.Local && a.take() {
				local[backendKeyOf(b.Address, want.ID.Protocol)] = struct{}{}
			}
		}
	}
	use, s := a.Arena(), a.state
	for _, count := range []struct {
		what      string
		got, want int
	}{
		{"frontends", countOf[maps.FrontendKey, maps.Frontend](t, a.set.Frontends, nil), frontends},
		{"names", countOf[uint32, maps.ServiceName](t, a.set.ServiceNames, nil), len(all)},
		{"backends", countOf[uint32](t, a.set.Backends, func(b maps.Backend) bool { return b.Generation != 0 }), len(backends)},
		{"gone backends", countOf[uint32](t, a.set.Backends, func(b maps.Backend) bool { return b.Flags&maps.BackendGone != 0 }), 0},
		{"tunnel targets", countOf[maps.TunnelTarget, uint32](t, a.set.TunnelTargets, nil), len(local)},
		{"known backends", len(s.backends), len(backends)},
		{"slot blocks in use", int(use.Blocks - 1 - use.Free), int(blocks)},
		{"record indices in use", s.records.size() - s.records.room(), len(all)},
		{"ids in use", s.ids.size() - s.ids.room(), len(all)},
		{"backend indices in use", s.backendIndices.size() - s.backendIndices.room(), len(backends)},
		{"departed", len(s.departed), 0},
		{"retired", len(s.retired), 0},
		{"awaiting", len(s.awaiting), 0},
	} {
		if count.got != count.want {
			t.Errorf("%d %s, want %d", count.got, count.what, count.want)
		}
	}
}

// countOf counts the elements of a map that pass.
func countOf[K, V any](t testing.TB, m *ebpf.Map, passes func(V) bool) int {
	t.Helper()
	count := 0
	err := maps.Each(m, func(_ K, value V) bool {
		if passes == nil || passes(value) {
			count++
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}
