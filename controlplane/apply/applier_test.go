package apply

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

func newSet(t testing.TB, sizes maps.Sizes) *maps.Set {
	t.Helper()
	set, err := maps.New(sizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

func smallSizes() maps.Sizes {
	return maps.Sizes{Services: 64, Frontends: 64, Backends: 64, SlotBlocks: 1024, FlowsIPv4: 64, FlowsIPv6: 64, Embryos: 64, Devices: 16}
}

func newApplier(t testing.TB, set *maps.Set) *Applier {
	t.Helper()
	a, err := New(set, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// vip returns the nth frontend.
func vip(n int) compile.Frontend {
	return compile.Frontend{Kind: compile.ClusterIP, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(n)}), 80)}
}

func vipKey(n int) maps.FrontendKey { return maps.FrontendKeyOf(vip(n).Address, uint8(compile.TCP)) }

// web returns a service on the nth VIP with backends 10.0.0.x:8080.
func web(n int, hosts ...byte) compile.Service {
	want := compile.Service{
		ID:               compile.ID{Namespace: "default", Name: fmt.Sprintf("web%d", n), Protocol: compile.TCP, Family: compile.IPv4},
		Frontends:        []compile.Frontend{vip(n)},
		OutsideAlgorithm: maps.AlgorithmMaglev,
		NoEndpoints:      len(hosts) == 0,
	}
	for _, host := range hosts {
		backend := compile.Backend{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, host}), 8080)}
		want.Inside = append(want.Inside, backend)
		want.Outside = append(want.Outside, backend)
	}
	return want
}

// at returns the service with other frontends.
func at(want compile.Service, vips ...int) compile.Service {
	want.Frontends = nil
	for _, n := range vips {
		want.Frontends = append(want.Frontends, vip(n))
	}
	return want
}

func mustSync(t testing.TB, a *Applier, all ...compile.Service) {
	t.Helper()
	err := a.Sync(all)
	problems := a.Problems()
	if err != nil || len(problems) > 0 {
		t.Fatalf("Sync: %v, %v", problems, err)
	}
}

func mustApply(t testing.TB, a *Applier, changed []compile.Service, removed ...compile.ID) {
	t.Helper()
	err := a.Apply(changed, removed)
	problems := a.Problems()
	if err != nil || len(problems) > 0 {
		t.Fatalf("Apply: %v, %v", problems, err)
	}
}

// checkServed checks that every frontend leads where its service says.
func checkServed(t testing.TB, set *maps.Set, all ...compile.Service) {
	t.Helper()
	r := newReader(t, set)
	for _, want := range all {
		for _, key := range frontendKeys(want) {
			got, err := r.look(key)
			if err != nil || got.answer != expected(want) {
				t.Errorf("%s of %s: %+v, %v, want %+v", key.AddrPort(), want.ID, got.answer, err, expected(want))
			}
		}
	}
}

func TestSyncWritesWhatIsWanted(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	dual := at(web(3, 2, 3), 3, 4)
	dual.Outside, dual.AffinityTimeout = nil, 3*time.Hour // rule P02: no local endpoint, and not NoEndpoints
	six := compile.Service{
		ID:        compile.ID{Namespace: "default", Name: "six", Protocol: compile.UDP, Family: compile.IPv6},
		Frontends: []compile.Frontend{{Kind: compile.NodePort, Address: netip.MustParseAddrPort("[::]:30053")}},
		Inside:    []compile.Backend{{Address: netip.MustParseAddrPort("[fd00::5]:53"), Local: true, Terminating: true}},
	}
	all := []compile.Service{web(1, 1, 2, 3), web(2), dual, six}
	mustSync(t, a, all...)
	checkServed(t, set, all...)

	for _, of := range []compile.Service{dual, six} {
		for key, kind := range frontendKinds(of) {
			var value maps.Frontend
			if err := set.Frontends.Lookup(&key, &value); err != nil || value.Kind() != kind {
				t.Errorf("%s is of kind %d, want %d, %v", key.AddrPort(), value.Kind(), kind, err)
			}
		}
	}
	index := a.state.backends[backendKeyOf(netip.MustParseAddrPort("[fd00::5]:53"), compile.UDP)].index
	var backend maps.Backend
	if err := set.Backends.Lookup(index, &backend); err != nil {
		t.Fatal(err)
	}
	backend.Generation = 0
	want := maps.Backend{
		Flags: maps.BackendLocal | maps.BackendTerminating, Port: 53, Protocol: 17,
		Address: maps.AddressOf(netip.MustParseAddr("fd00::5")),
	}
	if backend != want {
		t.Errorf("backend is %+v, want %+v", backend, want)
	}
	current := a.state.services[dual.ID].current
	var name maps.ServiceName
	if err := set.ServiceNames.Lookup(current.index, &name); err != nil || name.String() != dual.ID.String() || name.Id != current.value.Id {
		t.Errorf("name of record %d is %d %q, %v", current.index, name.Id, name, err)
	}
	if current.value.AffinityTimeout != 10800 {
		t.Errorf("affinity timeout is %d s", current.value.AffinityTimeout)
	}
	mustSync(t, a)
	var epoch uint32
	sweepAll(t, a, &epoch)
	checkTidy(t, a, nil)
}

// A restart finds everything right and writes nothing; so does a second Sync, and an Apply of what is there.
func TestWhatIsRightIsNotWritten(t *testing.T) {
	set := newSet(t, smallSizes())
	all := []compile.Service{web(1, 1, 2), web(2), at(web(3, 2, 3, 4), 3, 4, 5)}
	first := newApplier(t, set)
	mustSync(t, first, all...)
	again := newApplier(t, set)
	for _, a := range []*Applier{first, again} {
		before := a.Writes()
		mustSync(t, a, all...)
		mustApply(t, a, all, web(9).ID)
		if writes := a.Writes() - before; writes != 0 {
			t.Errorf("%d writes of what was right", writes)
		}
	}
}

// A change costs what it changes, whatever else there is.
func TestAChangeWritesOnlyItself(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	all := []compile.Service{web(1, 1, 2)}
	for n := 2; n < 40; n++ {
		all = append(all, web(n, 1, 2))
	}
	mustSync(t, a, all...)
	flagged := web(1, 1, 2, 3)
	flagged.Inside[0].Terminating = true // of all services that list it, only one says so: not written
	external := web(1, 1, 2, 3)
	external.Frontends = []compile.Frontend{{Kind: compile.ExternalIP, Address: vip(1).Address}}
	insideOnly := web(1, 1, 2, 3)
	insideOnly.Inside = insideOnly.Inside[:1]
	for _, step := range []struct {
		what   string
		change compile.Service
		writes uint64
	}{
		{"a backend is added: itself, two tables, record, name, frontend, and the old name", web(1, 1, 2, 3), 7},
		{"terminating for one of many", flagged, 0},
		{"a frontend is added", at(web(1, 1, 2, 3), 1, 50), 1},
		{"a frontend is removed", web(1, 1, 2, 3), 1},
		{"a frontend is of another kind", external, 1},
		{"and back", web(1, 1, 2, 3), 1},
		{"one table changes", insideOnly, 5},
	} {
		before := a.Writes()
		mustApply(t, a, []compile.Service{step.change})
		if writes := a.Writes() - before; writes != step.writes {
			t.Errorf("%s: %d writes, want %d", step.what, writes, step.writes)
		}
		checkServed(t, set, step.change)
	}
}

// Services share a backend. It is local if one says so, terminating if all do, and the record says it once.
func TestSharedBackends(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	one, two := web(1, 1), web(2, 1)
	one.Inside[0].Terminating, one.Outside[0].Terminating = true, true
	two.Inside[0].Local, two.Outside[0].Local = true, true
	flags := func() uint32 {
		var record maps.Backend
		index := a.state.backends[backendKeyOf(one.Inside[0].Address, compile.TCP)].index
		if err := set.Backends.Lookup(index, &record); err != nil {
			t.Fatal(err)
		}
		return record.Flags
	}
	for _, step := range []struct {
		all  []compile.Service
		want uint32
	}{
		{[]compile.Service{one}, maps.BackendTerminating},
		{[]compile.Service{one, two}, maps.BackendLocal},
		{[]compile.Service{two}, maps.BackendLocal},
		{[]compile.Service{one}, maps.BackendTerminating},
	} {
		mustSync(t, a, step.all...)
		if got := flags(); got != step.want {
			t.Errorf("%d services: flags %#x, want %#x", len(step.all), got, step.want)
		}
		if count := countOf[uint32](t, set.Backends, func(b maps.Backend) bool { return b.Generation != 0 }); count != 1 {
			t.Errorf("%d backends", count)
		}
	}
}

// A frontend moves between services within one call, whichever comes first, and is never away.
func TestAFrontendMoves(t *testing.T) {
	for _, first := range []int{1, 2} {
		set := newSet(t, smallSizes())
		a, w := stepped(t, set)
		r := newReader(t, set)
		mustSync(t, a, at(web(1, 1, 2), 1, 7), web(2, 3, 4))
		changed := []compile.Service{web(1, 1, 2), at(web(2, 3, 4), 2, 7)}
		if first == 2 {
			slices.Reverse(changed)
		}
		seen := map[answer]bool{}
		w.look = func() {
			got, err := r.look(vipKey(7))
			if err != nil {
				t.Error(err)
			}
			seen[got.answer] = true
		}
		mustApply(t, a, changed)
		if w.look(); !cmp.Equal(seen, map[answer]bool{expected(web(1, 1, 2)): true, expected(web(2, 3, 4)): true}) {
			t.Errorf("web%d first: seen %v", first, seen)
		}
		checkServed(t, set, changed...)
	}
}

// The frontend of a Service that goes is taken over by one that comes in the same call.
func TestAFrontendIsInherited(t *testing.T) {
	set := newSet(t, smallSizes())
	a, w := stepped(t, set)
	r := newReader(t, set)
	mustSync(t, a, at(web(1, 1, 2), 1, 7))
	w.look = func() {
		if got, err := r.look(vipKey(7)); err != nil || !got.answer.there {
			t.Errorf("after %d writes: %+v, %v", w.made, got, err)
		}
	}
	heir := at(web(2, 3), 7)
	mustApply(t, a, []compile.Service{heir}, web(1).ID)
	w.look = nil
	checkServed(t, set, heir)
	var epoch uint32
	sweepAll(t, a, &epoch)
	checkTidy(t, a, []compile.Service{heir})
}

// An id is its service's for as long as flows name it, also across a restart and when the service comes back.
func TestServiceIDs(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	mustSync(t, a, web(1, 1), web(2, 2))
	id := a.state.services[web(1).ID].id
	mustApply(t, a, []compile.Service{web(1, 1, 2)})
	if got := a.state.services[web(1).ID].id; got != id {
		t.Errorf("a change made id %d of %d", got, id)
	}
	mustApply(t, a, nil, web(1).ID)
	a = newApplier(t, set)
	mustSync(t, a, web(2, 2), web(3, 3), web(1, 5))
	if got := a.state.services[web(1).ID].id; got != id {
		t.Errorf("back again: id %d, was %d", got, id)
	}
	if got := a.state.services[web(3).ID].id; got == id {
		t.Error("the id was given to another service")
	}
	var epoch uint32
	sweepAll(t, a, &epoch)
	checkTidy(t, a, []compile.Service{web(2, 2), web(3, 3), web(1, 5)})
}

// countsOf reads counters, summed.
func countsOf(t testing.TB, m *ebpf.Map, index uint32) (packets uint64) {
	t.Helper()
	var perCPU []maps.Traffic
	if err := m.Lookup(index, &perCPU); err != nil {
		t.Fatal(err)
	}
	for _, traffic := range perCPU {
		packets += traffic.Packets
	}
	return packets
}

// A backend index and an id that a flow names are kept, through restarts; those that none names come back with
// their counters at zero.
func TestIndicesThatFlowsNameAreKept(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	mustSync(t, a, web(1, 1), web(2, 2))
	index := a.state.backends[backendKeyOf(netip.MustParseAddrPort("10.0.0.1:8080"), compile.TCP)].index
	id := a.state.services[web(1).ID].id
	for _, counters := range []struct {
		m     *ebpf.Map
		index uint32
	}{{set.BackendStats, index}, {set.ServiceStats, id}} {
		perCPU := make([]maps.Traffic, ebpf.MustPossibleCPU())
		perCPU[0].Packets = 5
		if err := counters.m.Put(counters.index, perCPU); err != nil {
			t.Fatal(err)
		}
	}
	mustApply(t, a, nil, web(1).ID)
	kept := func() bool {
		var record maps.Backend
		if err := set.Backends.Lookup(index, &record); err != nil {
			t.Fatal(err)
		}
		named := countOf[uint32](t, set.ServiceNames, func(n maps.ServiceName) bool { return n.Id == id }) == 1
		if alive := record.Generation != 0; alive != named {
			t.Errorf("backend is kept %v, name %v", alive, named)
		}
		return named
	}
	for epoch, met := range []bool{2: true, 3: false, 4: true, 5: false, 6: false} {
		if epoch < 2 {
			continue
		}
		sweep, err := a.BeginSweep()
		if err != nil {
			t.Fatal(err)
		}
		if met {
			for _, usage := range []struct {
				m     *ebpf.Map
				index uint32
			}{{set.BackendUsage, index}, {set.ServiceUsage, id}} {
				if err := usage.m.Put(usage.index, uint32(epoch)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := a.EndSweep(sweep, uint32(epoch)); err != nil {
			t.Fatal(err)
		}
		if want := epoch < 6; kept() != want {
			t.Errorf("after sweep %d: kept %v, want %v", epoch, kept(), want)
		}
		if epoch == 2 {
			a = newApplier(t, set)
		}
	}
	if packets := countsOf(t, set.BackendStats, index) + countsOf(t, set.ServiceStats, id); packets != 0 {
		t.Errorf("the next holder begins with %d packets", packets)
	}
	mustSync(t, a, web(2, 2))
	checkTidy(t, a, []compile.Service{web(2, 2)})
}

// A backend that no table names says so to the sockets that still use it, and is told apart from one that came back.
func TestGoneBackendsSaySo(t *testing.T) {
	set := newSet(t, smallSizes())
	a, w := stepped(t, set)
	mustSync(t, a, web(1, 1, 2), web(2, 2))
	index := a.state.backends[backendKeyOf(netip.MustParseAddrPort("10.0.0.1:8080"), compile.TCP)].index
	gone := func() bool {
		var record maps.Backend
		if err := set.Backends.Lookup(index, &record); err != nil {
			t.Fatal(err)
		}
		return record.Flags&maps.BackendGone != 0
	}
	for _, step := range []struct {
		all  []compile.Service
		want bool
	}{
		{[]compile.Service{web(1, 2), web(2, 2)}, true},
		{[]compile.Service{web(1, 2), web(2, 1, 2)}, false},
		{[]compile.Service{web(1, 2)}, true},
		{[]compile.Service{web(1, 1, 2)}, false},
	} {
		mustSync(t, a, step.all...)
		if gone() != step.want {
			t.Errorf("%v: gone is %v", step.all, gone())
		}
	}
	// Its writer ends just before it says so.
	w.left = 5
	if err := a.Apply([]compile.Service{web(1, 2)}, nil); !errors.Is(err, errStopped) || gone() {
		t.Fatalf("Apply: %v, gone is %v", err, gone())
	}
	mustSync(t, newApplier(t, set), web(1, 2))
	if !gone() {
		t.Error("its successor did not say so")
	}
}

// A backend that comes back before it is gone is the same one.
func TestABackendComesBack(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	mustSync(t, a, web(1, 1, 2))
	key := backendKeyOf(netip.MustParseAddrPort("10.0.0.2:8080"), compile.TCP)
	index := a.state.backends[key].index
	var epoch uint32
	for range 3 {
		mustApply(t, a, []compile.Service{web(1, 1)})
		if _, err := a.BeginSweep(); err != nil { // a sweep that is given up
			t.Fatal(err)
		}
		mustApply(t, a, []compile.Service{web(1, 1, 2)})
		if got := a.state.backends[key].index; got != index {
			t.Fatalf("index %d, was %d", got, index)
		}
	}
	sweepAll(t, a, &epoch)
	checkServed(t, set, web(1, 1, 2))
	checkTidy(t, a, []compile.Service{web(1, 1, 2)})
}

// Far more changes than there are indices and slots: grace periods and sweeps bring them back.
func TestWhatIsRetiredComesBack(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	a.grace = func() error { return nil }
	var epoch uint32
	for round := range 400 {
		mustApply(t, a, []compile.Service{web(1, byte(round), byte(round+1))})
		if round%16 == 0 {
			sweepAll(t, a, &epoch)
		}
	}
	sweepAll(t, a, &epoch)
	checkTidy(t, a, []compile.Service{web(1, 143, 144)})
}

func TestNoRoom(t *testing.T) {
	many := make([]byte, 200)
	for i := range many {
		many[i] = byte(i + 1)
	}
	for _, test := range []struct {
		what  string
		sizes func(*maps.Sizes)
		fit   []compile.Service // with these there is no room for the next
		next  compile.Service
		flag  string
	}{
		{"backends", func(s *maps.Sizes) { s.Backends = 4 }, []compile.Service{web(1, 1, 2)}, web(2, 3, 4), "--max-backends"},
		{"frontends", func(s *maps.Sizes) { s.Frontends = 2 }, []compile.Service{web(1, 1)}, at(web(2, 1), 2, 3), "--max-frontends"},
		{"services", func(s *maps.Sizes) { s.Services = 3 }, []compile.Service{web(1, 1), web(2, 1)}, web(3, 1), "--max-services"},
		{"slot blocks", func(s *maps.Sizes) { s.SlotBlocks = 80 }, []compile.Service{web(1, 1, 2), web(2, 1, 2)}, web(3, many[:10]...), "--max-slot-blocks"},
	} {
		t.Run(test.what, func(t *testing.T) {
			sizes := smallSizes()
			test.sizes(&sizes)
			set := newSet(t, sizes)
			a := newApplier(t, set)
			mustSync(t, a, test.fit...)
			// Nor is there for more of what is there: it goes on as it was.
			grown := test.next
			grown.ID, grown.Frontends = test.fit[0].ID, append(slices.Clone(test.next.Frontends), test.fit[0].Frontends...)
			if test.what != "services" {
				checkLeftOut(t, a, grown, test.flag, "as it was before")
			}
			checkServed(t, set, test.fit...)
			checkLeftOut(t, a, test.next, test.flag, "not served")
			checkServed(t, set, test.fit...)
			// Others are not held up.
			last := len(test.fit) - 1
			fewer := test.fit[last]
			fewer.Inside = nil
			if err := a.Apply([]compile.Service{fewer}, nil); err != nil || len(a.Problems()) == 0 {
				t.Errorf("another change: %v, %v", a.Problems(), err)
			}
			checkServed(t, set, fewer)
			// Room comes with what goes, at the latest when its flows have ended.
			ids := make([]compile.ID, 0, len(test.fit))
			for _, gone := range test.fit {
				ids = append(ids, gone.ID)
			}
			if err := a.Apply(nil, ids); err != nil {
				t.Fatal(err)
			}
			var epoch uint32
			sweepAll(t, a, &epoch)
			if problems := a.Problems(); len(problems) > 0 {
				t.Errorf("with room: %v", problems)
			}
			checkServed(t, set, test.next)
			checkTidy(t, a, []compile.Service{test.next})
		})
	}
}

func checkLeftOut(t *testing.T, a *Applier, want compile.Service, parts ...string) {
	t.Helper()
	if err := a.Apply([]compile.Service{want}, nil); err != nil {
		t.Fatal(err)
	}
	problems := a.Problems()
	object := "Service default/" + want.ID.Name
	for _, problem := range problems {
		if problem.Object != object {
			continue
		}
		for _, part := range parts {
			if !strings.Contains(problem.Message, part) || problem.Reason != "NoRoom" {
				t.Errorf("%s: %q does not mention %q", problem.Reason, problem.Message, part)
			}
		}
		return
	}
	t.Errorf("%s fits: %v", object, problems)
}

// A service that does not grow can always change: the arena has a reserve for the second table.
func TestAFullArenaDoesNotStopChanges(t *testing.T) {
	sizes := smallSizes()
	sizes.SlotBlocks = 600
	set := newSet(t, sizes)
	a := newApplier(t, set)
	var all []compile.Service
	for n := 1; ; n++ {
		want := web(n, byte(n), byte(n+1))
		if err := a.Apply([]compile.Service{want}, nil); err != nil {
			t.Fatal(err)
		}
		if len(a.Problems()) > 0 {
			mustApply(t, a, nil, want.ID)
			break
		}
		all = append(all, want)
	}
	if len(all) < 30 {
		t.Fatalf("only %d services fit", len(all))
	}
	for i := range all {
		all[i] = web(i+1, byte(i+2), byte(i+3))
	}
	mustApply(t, a, all)
	checkServed(t, set, all...)
}

// Room that is there in pieces only is no room, and what was taken meanwhile is given back.
func TestAnArenaInPieces(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	arena := a.state.arena
	var pieces []maps.SlotRange
	for {
		piece, err := arena.Alloc(10 * maps.SlotsPerBlock)
		if err != nil {
			break
		}
		pieces = append(pieces, piece)
	}
	for i := 0; i < len(pieces); i += 2 {
		arena.Free(pieces[i])
	}
	free := arena.Use().Free
	checkLeftOut(t, a, web(1, 1, 2), "slot blocks in a row", "--max-slot-blocks")
	if now := arena.Use().Free; now != free {
		t.Errorf("%d blocks are free, were %d", now, free)
	}
	for i := 1; i < len(pieces); i += 2 {
		arena.Free(pieces[i])
	}
	mustApply(t, a, []compile.Service{web(1, 1, 2)})
}

// A change that needs room while a sweep waits for the grace period waits for one of its own; what it gives back is not
// given back again.
func TestAChangeDuringTheGracePeriodOfASweep(t *testing.T) {
	sizes := smallSizes()
	sizes.SlotBlocks = 60 // for three tables at a time
	set := newSet(t, sizes)
	a := newApplier(t, set)
	all := []compile.Service{web(1, 1, 2), web(2, 3, 4)}
	graces, retired := 0, 0
	a.grace = func() error {
		graces++
		if graces > 1 {
			return nil
		}
		for host := byte(5); host < 15; host++ {
			all[host%2] = web(1+int(host%2), host, host+1)
			mustApply(t, a, all)
			checkServed(t, set, all...)
		}
		retired = len(a.state.retired)
		return nil
	}
	mustSync(t, a, all...)
	mustApply(t, a, []compile.Service{web(1, 1, 3)})
	sweep, err := a.BeginSweep()
	if err != nil {
		t.Fatal(err)
	}
	if graces < 3 {
		t.Fatalf("only %d grace periods: no change was in need of room", graces)
	}
	if now := len(a.state.retired); now != retired || retired == 0 {
		t.Errorf("%d retired, want %d: they have not had a grace period", now, retired)
	}
	if err := a.EndSweep(sweep, 1); err != nil {
		t.Fatal(err)
	}
	epoch := uint32(1)
	sweepAll(t, a, &epoch)
	checkServed(t, set, all...)
	checkTidy(t, a, all)
}

// After a failed write the next call reads the maps back and makes good everything.
func TestAFailedWriteIsMadeGood(t *testing.T) {
	set := newSet(t, smallSizes())
	a, w := stepped(t, set)
	mustSync(t, a, web(1, 1), web(2, 2), web(3, 3))
	w.left = 4
	if err := a.Apply([]compile.Service{web(1, 4), web(2, 5)}, []compile.ID{web(3).ID}); !errors.Is(err, errStopped) {
		t.Fatalf("Apply: %v", err)
	}
	w.left = -1
	mustApply(t, a, []compile.Service{web(4, 6)})
	all := []compile.Service{web(1, 4), web(2, 5), web(4, 6)}
	checkServed(t, set, all...)
	var epoch uint32
	sweepAll(t, a, &epoch)
	checkTidy(t, a, all)

	w.left = 2
	if err := a.Apply([]compile.Service{web(1, 7)}, nil); !errors.Is(err, errStopped) {
		t.Fatalf("Apply: %v", err)
	}
	w.left = -1
	if _, err := a.BeginSweep(); err != nil { // with no change to come, the next sweep does it
		t.Fatal(err)
	}
	checkServed(t, set, web(1, 7), web(2, 5), web(4, 6))
}

// What stood in the way of services is told also while the maps are to be read back.
func TestProblemsAfterAFailedWrite(t *testing.T) {
	sizes := smallSizes()
	sizes.Backends = 4
	a, w := stepped(t, newSet(t, sizes))
	checkLeftOut(t, a, web(1, 1, 2, 3, 4, 5), "--max-backends")
	w.left = 0
	if err := a.Apply([]compile.Service{web(2, 1)}, nil); !errors.Is(err, errStopped) {
		t.Fatalf("Apply: %v", err)
	}
	if problems := a.Problems(); len(problems) != 1 {
		t.Errorf("one service is left out, and the problems are %v", problems)
	}
}

// Before a successor knows what is desired it takes nothing out, also where a write of its sweeps has failed (rule S09).
func TestS09_NothingGoesBeforeSync(t *testing.T) {
	set := newSet(t, smallSizes())
	mustSync(t, newApplier(t, set), web(1, 1, 2))
	a := newApplier(t, set)
	a.state = nil // as after a failed write
	sweep, err := a.BeginSweep()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.EndSweep(sweep, 1); err != nil {
		t.Fatal(err)
	}
	if err := a.TunnelsChanged(); err != nil {
		t.Fatal(err)
	}
	var value maps.Frontend
	key := vipKey(1)
	if err := set.Frontends.Lookup(&key, &value); err != nil || a.Writes() > 0 {
		t.Errorf("the frontend of a service that nobody has said to be gone: %v; %d writes", err, a.Writes())
	}
}
