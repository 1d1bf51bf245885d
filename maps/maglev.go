package maps

import (
	"hash/fnv"
	"math"
	"math/big"
	"net/netip"
	"slices"
)

// Candidate is a backend that a Maglev table is built for.
type Candidate struct {
	Address netip.AddrPort
	Weight  uint32 // its share of new connections relative to the others'; 0 gives it none
}

// maglevSlotsPerBackend keeps the shares of equal backends within a few percent of each other; with weights, the
// lightest has no fewer than maglevSlotsOfLightest on the average.
const (
	maglevSlotsPerBackend = 64
	maglevSlotsOfLightest = 8
)

// The sizes that a table can be given: primes between these.
const (
	MaglevSizeMin = 251
	MaglevSizeMax = 131071
)

// IsMaglevSize tells whether all tables may have that size: only through a prime one every step visits every slot.
func IsMaglevSize(size uint32) bool {
	return size >= MaglevSizeMin && size <= MaglevSizeMax && big.NewInt(int64(size)).ProbablyPrime(0)
}

// maglevSizes returns the sizes a table can have: primes, so that every step through it visits every slot.
func maglevSizes() []uint32 {
	return []uint32{251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071}
}

// MaglevSize returns the size of the table of those candidates. It depends on their number and weights alone, so
// that every node makes the same table. A fixed size, a prime, is the one of all tables of more than one candidate, as
// long as it has a slot for each; 0: there is none.
func MaglevSize(candidates []Candidate, fixed uint32) uint32 {
	count, total, lightest := uint64(0), uint64(0), uint64(math.MaxUint32)
	for _, candidate := range candidates {
		if weight := uint64(candidate.Weight); weight > 0 {
			count, total, lightest = count+1, total+weight, min(lightest, weight)
		}
	}
	if count <= 1 {
		return uint32(count)
	}
	if uint64(fixed) >= count {
		return fixed
	}
	need := max(maglevSlotsPerBackend*count, maglevSlotsOfLightest*total/lightest)
	sizes := maglevSizes()
	for _, size := range sizes {
		if uint64(size) >= need {
			return size
		}
	}
	return sizes[len(sizes)-1]
}

// Maglev returns a table of positions in candidates, which spreads clients over them by weight and moves
// few of them when one comes or goes (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
// Balancer", NSDI 2016, 3.4). It depends on the addresses, weights and MaglevSize alone, not on their order.
func Maglev(candidates []Candidate, fixed uint32) []uint32 {
	order := make([]uint32, 0, len(candidates))
	heaviest := uint32(0)
	for i, candidate := range candidates {
		if candidate.Weight > 0 {
			order = append(order, uint32(i))
		}
		heaviest = max(heaviest, candidate.Weight)
	}
	slices.SortFunc(order, func(a, b uint32) int {
		return candidates[a].Address.Compare(candidates[b].Address)
	})
	size := MaglevSize(candidates, fixed)
	if size <= 1 {
		return order
	}
	return maglevFill(candidates, order, size, heaviest)
}

// maglevWalk is a backend's preference list: the slots from `next` on, `skip` apart.
type maglevWalk struct {
	next, skip uint32
	credit     uint32
}

func maglevWalkOf(address netip.AddrPort, size uint32) maglevWalk {
	raw, _ := address.MarshalBinary() // of a valid address: no error
	hash := fnv.New64a()
	hash.Write(raw)
	offset := mix(hash.Sum64())
	skip := mix(offset)
	return maglevWalk{next: uint32(offset % uint64(size)), skip: uint32(skip%uint64(size-1)) + 1}
}

// mix is the finalizer of splitmix64 (Steele et al., OOPSLA 2014): FNV alone leaves similar addresses similar.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// maglevFill lets the backends take turns, by weight, each claiming the next free slot of its list.
func maglevFill(candidates []Candidate, order []uint32, size, heaviest uint32) []uint32 {
	walks := make([]maglevWalk, len(order))
	for i, position := range order {
		walks[i] = maglevWalkOf(candidates[position].Address, size)
	}
	const free = math.MaxUint32
	table := slices.Repeat([]uint32{free}, int(size))
	for filled := uint32(0); filled < size; {
		for i := range walks {
			walk := &walks[i]
			walk.credit += candidates[order[i]].Weight
			if walk.credit < heaviest || filled == size {
				continue
			}
			walk.credit -= heaviest
			for table[walk.next] != free {
				walk.next = (walk.next + walk.skip) % size
			}
			table[walk.next] = order[i]
			filled++
		}
	}
	return table
}
