package apply

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// behind returns the service with its nth address a load balancer's, for clients of these prefixes alone.
func behind(want compile.Service, n int, prefixes ...string) compile.Service {
	want.Frontends = append(slices.Clone(want.Frontends), compile.Frontend{Kind: compile.LoadBalancer, Address: vip(n).Address})
	want.Restricted = true
	for _, text := range prefixes {
		want.Sources = append(want.Sources, netip.MustParsePrefix(text))
	}
	return want
}

// admits tells whether a client may open a flow, as bpf/access.h does. No frontend admits nobody.
func admits(t testing.TB, set *maps.Set, key maps.FrontendKey, client string) bool {
	t.Helper()
	got, err := newReader(t, set).look(key)
	if err != nil {
		t.Fatal(err)
	}
	if !got.answer.there {
		return false
	}
	var frontend maps.Frontend
	if err := set.Frontends.Lookup(&key, &frontend); err != nil {
		t.Fatal(err)
	}
	if got.record.Flags&maps.ServiceSourceRanges == 0 || frontend.Kind() != maps.FrontendLoadBalancer {
		return true
	}
	address := netip.MustParseAddr(client)
	source := maps.SourceKeyOf(got.record.Id, netip.PrefixFrom(address, address.BitLen()))
	var value uint32
	return set.Sources.Lookup(&source, &value) == nil
}

func sourcesIn(t testing.TB, set *maps.Set) int {
	t.Helper()
	count := 0
	if err := maps.EachKey(set.Sources, func(maps.SourceKey) { count++ }); err != nil {
		t.Fatal(err)
	}
	return count
}

// Whenever a program looks, who may before and after a change may, and who may neither before nor after may not.
func TestSourceRangesChangeInOrder(t *testing.T) {
	const always, never = "10.1.0.1", "192.0.2.1"
	open := behind(web(1, 1, 2), 9)
	open.Restricted = false
	closedTo := behind(web(1, 1, 2), 9, "10.1.0.0/16")
	wider := behind(web(1, 1, 2), 9, "10.0.0.0/8", "172.16.0.0/12")
	elsewhere := behind(web(1, 3), 9, "10.1.0.1/32", "198.51.100.0/24")
	set := newSet(t, smallSizes())
	a, steps := stepped(t, set)
	mustSync(t, a, closedTo)
	before := closedTo
	for _, next := range []compile.Service{wider, closedTo, elsewhere, wider, open, elsewhere} {
		strict := before.Restricted && next.Restricted
		before = next
		steps.look = func() {
			t.Helper()
			if !admits(t, set, vipKey(9), always) {
				t.Errorf("after %d writes, %s may not", steps.made, always)
			}
			if strict && admits(t, set, vipKey(9), never) {
				t.Errorf("after %d writes, %s may", steps.made, never)
			}
		}
		mustSync(t, a, next)
		steps.look = nil
		if got := admits(t, set, vipKey(9), never); got == next.Restricted {
			t.Errorf("in the end %s may: %v", never, got)
		}
		if got := sourcesIn(t, set); got != len(next.Sources) {
			t.Errorf("there are %d source ranges, want %d", got, len(next.Sources))
		}
	}
}

// A successor takes out what belongs to nobody, and finds the rest right.
func TestSourceRangesAreReadBack(t *testing.T) {
	set := newSet(t, smallSizes())
	want := behind(web(1, 1), 9, "10.0.0.0/8")
	mustSync(t, newApplier(t, set), want)
	for _, key := range []maps.SourceKey{
		maps.SourceKeyOf(1, netip.MustParsePrefix("0.0.0.0/0")), maps.SourceKeyOf(40, netip.MustParsePrefix("10.0.0.0/8")), {},
	} {
		if err := set.Sources.Put(&key, uint32(1)); err != nil {
			t.Fatal(err)
		}
	}
	mustSync(t, newApplier(t, set), want)
	if sourcesIn(t, set) != 1 || !admits(t, set, vipKey(9), "10.1.1.1") || admits(t, set, vipKey(9), "192.0.2.1") {
		t.Errorf("%d source ranges are left", sourcesIn(t, set))
	}
	again := newApplier(t, set)
	mustSync(t, again, want)
	if again.Writes() != 0 {
		t.Errorf("%d writes of what was right", again.Writes())
	}
	mustSync(t, again)
	if sourcesIn(t, set) != 0 {
		t.Errorf("%d source ranges of a removed service are left", sourcesIn(t, set))
	}
}

// A service whose source ranges have no room is closed, whatever it was before, until they have.
func TestNoRoomForSourceRanges(t *testing.T) {
	sizes := smallSizes()
	sizes.Sources = 2
	set := newSet(t, sizes)
	a := newApplier(t, set)
	open := behind(web(1, 1), 9)
	open.Restricted = false
	other := behind(web(2, 2), 10, "10.0.0.0/8")
	mustSync(t, a, open, other)
	want := behind(web(1, 1), 9, "10.0.0.0/8", "172.16.0.0/12")
	err := a.Sync([]compile.Service{want, other})
	problems := a.Problems()
	if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Message, "--max-source-ranges") {
		t.Fatalf("Sync: %v, %v", problems, err)
	}
	if admits(t, set, vipKey(9), "10.1.1.1") || !admits(t, set, vipKey(1), "10.1.1.1") || !admits(t, set, vipKey(10), "10.1.1.1") {
		t.Error("the service is not closed, or more than it is")
	}
	mustSync(t, a, want)
	if !admits(t, set, vipKey(9), "10.1.1.1") || admits(t, set, vipKey(9), "192.0.2.1") {
		t.Error("with room, the service is not as it should be")
	}
}

// A service that gets source ranges, and has no room for the change, is closed to all that came by the load balancer.
func TestNoRoomForARestrictedService(t *testing.T) {
	sizes := smallSizes()
	sizes.SlotBlocks = 34
	set := newSet(t, sizes)
	a := newApplier(t, set)
	open := behind(web(1, 1), 9)
	open.Restricted = false
	mustSync(t, a, open)
	want := behind(web(1, 1, 2, 3, 4, 5, 6, 7, 8), 9, "10.0.0.0/8")
	err := a.Sync([]compile.Service{want})
	problems := a.Problems()
	if err != nil || len(problems) != 1 {
		t.Fatalf("Sync: %v, %v; there was room", problems, err)
	}
	if admits(t, set, vipKey(9), "192.0.2.1") || !admits(t, set, vipKey(1), "192.0.2.1") {
		t.Error("the service is not closed, or more than it is")
	}
}
