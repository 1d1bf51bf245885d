package clusterips

import (
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/rlimit"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
	"github.com/weir-lb/weir/maps"
)

func addresses(texts ...string) []netip.Addr {
	list := make([]netip.Addr, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParseAddr(text)
	}
	return list
}

// describe returns "prefix use" words.
func describe(held map[netip.Prefix]maps.ClusterIPUse) string {
	var words []string
	for _, prefix := range slices.SortedFunc(gomaps.Keys(held), netip.Prefix.Compare) {
		words = append(words, fmt.Sprintf("%s:%d", prefix, held[prefix]))
	}
	return strings.Join(words, " ")
}

// TestTable counts who has an address: the last one to go takes it along (rules C05, L09).
func TestC05_Table(t *testing.T) {
	table := NewTable()
	a, b := store.Key{Name: "a"}, store.Key{Name: "b"}
	for _, step := range []struct {
		what string
		do   func()
		all  string
	}{
		{"one Service", func() { table.Set(a, compile.Addresses{Allocated: addresses("10.96.0.1", "fd00::1")}) }, "10.96.0.1/32:2 fd00::1/128:2"},
		{"another claims it", func() { table.Set(b, compile.Addresses{Allocated: addresses("10.96.0.1")}) }, "10.96.0.1/32:2 fd00::1/128:2"},
		{"the first goes", func() { table.Set(a, compile.Addresses{}) }, "10.96.0.1/32:2"},
		{"external, too", func() { table.Set(a, compile.Addresses{Left: addresses("10.96.0.1", "192.0.2.1")}) }, ""},
		{"a range", func() { table.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/24")}) }, "10.96.0.0/24:1 10.96.0.1/32:3"},
		{"only external", func() { table.Set(b, compile.Addresses{}) }, "10.96.0.0/24:1 10.96.0.1/32:3"},
		{"no more", func() { table.Set(a, compile.Addresses{}) }, "10.96.0.0/24:1"},
		{"a range of one address", func() { table.SetRanges([]netip.Prefix{netip.MustParsePrefix("10.96.0.9/32")}) }, "10.96.0.9/32:1"},
		{"that is allocated", func() { table.Set(a, compile.Addresses{Allocated: addresses("10.96.0.9")}) }, "10.96.0.9/32:2"},
		{"no range", func() { table.SetRanges(nil) }, "10.96.0.9/32:2"},
	} {
		before := table.All()
		step.do()
		if got := describe(table.All()); got != step.all {
			t.Fatalf("%s: %s, want %s", step.what, got, step.all)
		}
		for prefix, use := range table.Changes() {
			if before[prefix] = use; use == 0 {
				delete(before, prefix)
			}
		}
		if got := describe(before); got != step.all {
			t.Fatalf("%s: the changes lead to %s, want %s", step.what, got, step.all)
		}
		table.Forget()
	}
}

func newSet(t *testing.T, services uint32) *maps.Set {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Skip("maps need root")
	}
	set, err := maps.New(maps.Sizes{Services: services, Frontends: 8, Backends: 8, SlotBlocks: 8, FlowsIPv4: 8, FlowsIPv6: 8, Embryos: 8, Affinity: 8, Devices: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

func use(texts ...string) map[netip.Prefix]maps.ClusterIPUse {
	all := map[netip.Prefix]maps.ClusterIPUse{}
	for _, text := range texts {
		all[netip.MustParsePrefix(text)] = maps.ClusterIPAllocated
	}
	return all
}

// TestWriter writes, changes, and takes up what a predecessor has left. The bounds have all that there has been.
func TestC05_Writer(t *testing.T) {
	set := newSet(t, 8)
	first := NewWriter(set)
	if err := first.Apply(use("10.96.0.1/32")); err == nil {
		t.Error("changes were written before it is known what the map holds")
	}
	if err := first.Sync(use("10.96.0.1/32", "10.96.1.0/24", "fd00::/112")); err != nil {
		t.Fatal(err)
	}
	second := NewWriter(set)
	if err := second.Sync(use("10.96.0.1/32", "fd00::/112", "fd00::5/128")); err != nil {
		t.Fatal(err)
	}
	if err := second.Apply(map[netip.Prefix]maps.ClusterIPUse{netip.MustParsePrefix("fd00::5/128"): 0, netip.MustParsePrefix("10.96.0.1/32"): maps.ClusterIPLeft}); err != nil {
		t.Fatal(err)
	}
	third := NewWriter(set)
	if err := third.read(); err != nil {
		t.Fatal(err)
	}
	if got, want := describe(third.held), "10.96.0.1/32:3 fd00::/112:2"; got != want {
		t.Errorf("the map holds %s, want %s", got, want)
	}
	for ipv6, want := range map[bool]string{false: "{10.96.0.1 10.96.1.255}", true: "{fd00:: fd00::ffff}"} {
		if bounds, err := set.Bounds(ipv6); err != nil || fmt.Sprint(bounds) != want {
			t.Errorf("bounds are %v, %v, want %s", bounds, err, want)
		}
	}
}

// TestWriterFull reports what there is no room for, and writes it when there is.
func TestC05_WriterFull(t *testing.T) {
	w := NewWriter(newSet(t, 1)) // room for two
	if err := w.Sync(use("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32")); err != nil {
		t.Fatal(err)
	}
	if problems := w.Problems(); len(problems) != 1 || !strings.HasPrefix(problems[0].Message, "1 addresses") {
		t.Errorf("problems: %v", problems)
	}
	if err := w.Sync(use("10.0.0.1/32", "10.0.0.3/32")); err != nil {
		t.Fatal(err)
	}
	if problems := w.Problems(); len(problems) != 0 || len(w.held) != 2 {
		t.Errorf("problems: %v, held: %v", problems, w.held)
	}
}
