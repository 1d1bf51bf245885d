package sweep

import (
	"context"
	"testing"
	"time"

	"github.com/weir-lb/weir/maps"
)

// pieceLimit is for how long a sweep may keep a CPU from everything else.
const pieceLimit = 5 * time.Millisecond

// No piece of a sweep takes longer, whatever is in a large table: nothing, little, a million flows, a million flows of
// which all are over.
func TestPiecesAreShort(t *testing.T) {
	for _, test := range []struct {
		what    string
		entries uint32
		flows   int
		idle    int // seconds
		left    int // flows, once swept
	}{
		{"an empty table", 1 << 20, 0, 0, 0},
		{"a sparse table", 1 << 20, 1000, 0, 1000},
		{"a million flows", 1 << 21, 1_000_000, 0, 1_000_000},
		{"a million flows that are over", 1 << 21, 1_000_000, 2000, 0},
	} {
		t.Run(test.what, func(t *testing.T) {
			b := newBench(t, test.entries)
			b.once(t) // the programs are told the timeouts, and there are milestones
			longest := pieceLimit + 1
			for tries := 0; longest > pieceLimit && tries < 3; tries++ { // interrupts are in a thread's time too
				b.fill(t, test.flows, test.idle)
				start := time.Now()
				done, err := walk(context.Background(), b.sweeper.options.Programs.SweepFlowsIPv4, b.set.FlowsIPv4)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d pieces of %v at most, in %v", done.pieces, done.longest, time.Since(start).Round(time.Millisecond))
				longest = done.longest
				if want := int(test.entries / 4096); done.pieces < want {
					t.Errorf("%d pieces, fewer than the %d milestones", done.pieces, want)
				}
			}
			if longest > pieceLimit {
				t.Errorf("a piece took %v, more than %v", longest, pieceLimit)
			}
			b.once(t) // one that stood behind a deleted one where a piece ended is the next sweep's
			ipv4, _, err := b.set.FlowTable().Count()
			if err != nil || ipv4 != 2*test.left {
				t.Errorf("%d halves are left (%v), not %d", ipv4, err, 2*test.left)
			}
		})
	}
}

// fill makes many flows that have been idle for so long.
func (b *bench) fill(t testing.TB, flows, idle int) {
	t.Helper()
	const batch = 4096
	keys, halves := make([]maps.FlowKey, 0, 2*batch), make([]maps.Flow, 0, 2*batch)
	flow := maps.Flow{
		Action: maps.FlowForward, State: maps.FlowEstablished, Service: 5, Backend: 7,
		LastSeen: b.now - uint32(idle*jiffiesPerSecond),
	}
	for n := range flows {
		forward, reverse := b.flowOf(n, 6)
		for kind, key := range map[maps.FlowHalf]maps.FlowKey{maps.FlowHalfForward: forward, maps.FlowHalfReverse: reverse} {
			half := flow
			half.Half, half.To = kind, reverse.Tuple.Reverse()
			if kind == maps.FlowHalfReverse {
				half.To = forward.Tuple.Reverse()
			}
			keys, halves = append(keys, key), append(halves, half)
		}
		if len(keys) == cap(keys) || n == flows-1 {
			if err := b.set.FlowTable().PutAll(keys, halves); err != nil {
				t.Fatal(err)
			}
			keys, halves = keys[:0], halves[:0]
		}
	}
}

// BenchmarkSweep measures a sweep of the default table, empty and full.
func BenchmarkSweep(b *testing.B) {
	for what, flows := range map[string]int{"empty": 0, "full": 262000} {
		b.Run(what, func(b *testing.B) {
			bench := newBench(b, 524288)
			bench.once(b)
			bench.fill(b, flows, 0)
			var all work
			for b.Loop() {
				done, err := walk(context.Background(), bench.sweeper.options.Programs.SweepFlowsIPv4, bench.set.FlowsIPv4)
				if err != nil {
					b.Fatal(err)
				}
				all.add(done)
			}
			b.ReportMetric(float64(all.longest.Microseconds()), "longest-us")
		})
	}
}
