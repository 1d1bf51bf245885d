package maps

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func candidates(first, count int) []Candidate {
	var list []Candidate
	for i := first; i < first+count; i++ {
		address := netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})
		list = append(list, Candidate{Address: netip.AddrPortFrom(address, 8080), Weight: 1})
	}
	return list
}

// owners returns the address in every slot.
func owners(list []Candidate) []netip.AddrPort {
	table := Maglev(list, 0)
	named := make([]netip.AddrPort, len(table))
	for i, position := range table {
		named[i] = list[position].Address
	}
	return named
}

func shares(table []netip.AddrPort) map[netip.AddrPort]float64 {
	counts := map[netip.AddrPort]float64{}
	for _, owner := range table {
		counts[owner] += 1 / float64(len(table))
	}
	return counts
}

// equals returns that many candidates of weight 1.
func equals(count int) []Candidate {
	return slices.Repeat([]Candidate{{Weight: 1}}, count)
}

func TestMaglevSize(t *testing.T) {
	for backends, want := range map[int]uint32{
		0: 0, 1: 1, 2: 251, 3: 251, 4: 509, 7: 509, 8: 1021, 10: 1021, 100: 8191, 1000: 65521, 2047: 131071, 5000: 131071,
	} {
		if got := MaglevSize(equals(backends), 0); got != want {
			t.Errorf("MaglevSize(%d) = %d, want %d", backends, got, want)
		}
	}
	for _, size := range maglevSizes() {
		for d := uint32(2); d*d <= size; d++ {
			if size%d == 0 {
				t.Errorf("%d is not a prime: %d divides it", size, d)
			}
		}
	}
}

// Every backend has its share, to one slot: all take the same number of turns.
func TestMaglevBalance(t *testing.T) {
	for _, count := range []int{1, 2, 3, 5, 10, 63, 64, 100, 500, 2000} {
		table := owners(candidates(1, count))
		worst := 0.0
		for _, share := range shares(table) {
			worst = max(worst, math.Abs(share*float64(count)-1))
		}
		if got := len(shares(table)); got != count {
			t.Errorf("%d of %d backends have slots", got, count)
		}
		if worst > 0.02 {
			t.Errorf("%d backends: a share is %.1f %% off", count, 100*worst)
		}
	}
}

func TestMaglevWeights(t *testing.T) {
	list := candidates(1, 6)
	total := 0.0
	for i := range list {
		list[i].Weight = uint32(i) // the first gets nothing
		total += float64(i)
	}
	got := shares(owners(list))
	for i, candidate := range list {
		if want := float64(i) / total; math.Abs(got[candidate.Address]-want) > 0.005 {
			t.Errorf("weight %d of %v: share %.3f, want %.3f", i, total, got[candidate.Address], want)
		}
	}
	if table := Maglev([]Candidate{{Address: list[0].Address}}, 0); len(table) != 0 {
		t.Errorf("a single backend of weight 0 has %d slots", len(table))
	}
}

func TestMaglevDoesNotDependOnTheOrder(t *testing.T) {
	list := candidates(1, 37)
	for i := range list {
		list[i].Weight = 1 + uint32(i%3)
	}
	want := owners(list)
	random := rand.New(rand.NewPCG(7, 8))
	for range 20 {
		random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		if !slices.Equal(owners(list), want) {
			t.Fatal("another order makes another table")
		}
	}
}

// The table is part of what nodes, and versions, agree upon.
func TestMaglevIsTheSameForEver(t *testing.T) {
	list := candidates(1, 3)
	list = append(list, Candidate{Address: netip.MustParseAddrPort("[fd00::1]:53"), Weight: 2})
	if got, want := fmt.Sprint(Maglev(list, 0)[:24]), "[3 3 2 1 3 0 3 3 0 2 2 2 0 3 1 0 3 3 2 0 3 0 0 1]"; got != want {
		t.Errorf("the table begins %s, want %s", got, want)
	}
}

// When a backend goes, its slots must move; of the others few.
func TestMaglevDisruption(t *testing.T) {
	for _, count := range []int{3, 10, 50, 120} { // removing one keeps the table's size
		before := owners(candidates(1, count))
		list := candidates(1, count)
		gone := list[count/2].Address
		after := owners(slices.Delete(list, count/2, count/2+1))
		if len(before) != len(after) {
			t.Fatalf("%d: the size changes from %d to %d", count, len(before), len(after))
		}
		moved, kept := 0, 0
		for i := range before {
			switch {
			case before[i] == gone:
			case before[i] == after[i]:
				kept++
			default:
				moved++
			}
		}
		if share := float64(moved) / float64(moved+kept); share > 0.05 {
			t.Errorf("%d backends: %.1f %% of the slots of the others moved", count, 100*share)
		}
	}
}

func BenchmarkMaglev(b *testing.B) {
	for _, count := range []int{2, 10, 100, 1000} {
		list := candidates(1, count)
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			for b.Loop() {
				Maglev(list, 0)
			}
		})
	}
}
