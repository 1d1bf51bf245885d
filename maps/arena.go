package maps

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// SlotsPerBlock is SLOTS_PER_BLOCK of bpf/types.h: tables begin on a cache line.
const SlotsPerBlock = 16

// ErrArenaFull says that no free range of the arena is large enough.
var ErrArenaFull = errors.New("no room for the selection table in map slots")

// smallTable is the number of blocks below which a table is a list, not a Maglev table.
const smallTable = 16

// Arena hands out ranges of the slots map and writes tables to them as memory. Maglev tables are taken from
// its beginning and lists from its end, so that the short holes that lists leave do not part the long
// ones. It is not safe for concurrent use.
type Arena struct {
	memory slotMemory
	free   []blockRange // sorted by base, never empty, never adjacent
	blocks uint32
	raw    []byte // what was written last: its room is used again
}

// blockRange is a run of blocks.
type blockRange struct{ base, count uint32 }

func (r blockRange) end() uint32 { return r.base + r.count }

// NewArena returns the slots as an arena. All of it is free but block 0, which is never used.
func NewArena(slots *ebpf.Map) *Arena {
	blocks := slots.MaxEntries()
	arena := &Arena{memory: slotMemory{slots}, blocks: blocks}
	if blocks > 1 {
		arena.free = []blockRange{{1, blocks - 1}}
	}
	return arena
}

// BlocksOf returns how many blocks hold a number of slots.
func BlocksOf(slots uint32) uint32 {
	return (slots + SlotsPerBlock - 1) / SlotsPerBlock
}

// Alloc takes a range for a table of that many slots: the first, or for a list the last, that is large
// enough. A table of no slots takes none.
func (a *Arena) Alloc(slots uint32) (SlotRange, error) {
	if slots == 0 {
		return SlotRange{}, nil
	}
	need := BlocksOf(slots)
	i := a.find(need)
	if i < 0 {
		return SlotRange{}, ErrArenaFull
	}
	hole := a.free[i]
	taken := blockRange{hole.base, need}
	if need < smallTable {
		taken.base = hole.end() - need
	}
	a.take(i, taken)
	return SlotRange{Base: taken.base * SlotsPerBlock, Count: slots}, nil
}

// find returns the position of the hole for a table of that many blocks, -1 if there is none.
func (a *Arena) find(need uint32) int {
	if need >= smallTable {
		return slices.IndexFunc(a.free, func(hole blockRange) bool { return hole.count >= need })
	}
	for i := len(a.free) - 1; i >= 0; i-- {
		if a.free[i].count >= need {
			return i
		}
	}
	return -1
}

// take cuts blocks out of a hole.
func (a *Arena) take(i int, taken blockRange) {
	hole := a.free[i]
	below := blockRange{hole.base, taken.base - hole.base}
	above := blockRange{taken.end(), hole.end() - taken.end()}
	switch {
	case below.count > 0 && above.count > 0:
		a.free[i] = below
		a.free = slices.Insert(a.free, i+1, above)
	case below.count > 0:
		a.free[i] = below
	case above.count > 0:
		a.free[i] = above
	default:
		a.free = slices.Delete(a.free, i, i+1)
	}
}

// after returns the position of the first hole that begins after a block.
func (a *Arena) after(block uint32) int {
	i, _ := slices.BinarySearchFunc(a.free, block, func(hole blockRange, block uint32) int {
		return cmp.Compare(uint64(hole.base), uint64(block)+1)
	})
	return i
}

// Reserve takes exactly this range, as a table that is in use already has it. It reports whether it was free.
func (a *Arena) Reserve(table SlotRange) bool {
	if table.Count == 0 {
		return true
	}
	taken := blockRange{table.Base / SlotsPerBlock, BlocksOf(table.Count)}
	i := a.after(taken.base) - 1
	if table.Base%SlotsPerBlock != 0 || i < 0 || taken.count > a.blocks || taken.end() > a.free[i].end() {
		return false
	}
	a.take(i, taken)
	return true
}

// Free gives a range back. No program may be reading it any more.
func (a *Arena) Free(table SlotRange) {
	if table.Count == 0 {
		return
	}
	freed := blockRange{table.Base / SlotsPerBlock, BlocksOf(table.Count)}
	i := a.after(freed.base)
	joinsBelow := i > 0 && a.free[i-1].end() == freed.base
	joinsAbove := i < len(a.free) && freed.end() == a.free[i].base
	switch {
	case joinsBelow && joinsAbove:
		a.free[i-1].count += freed.count + a.free[i].count
		a.free = slices.Delete(a.free, i, i+1)
	case joinsBelow:
		a.free[i-1].count += freed.count
	case joinsAbove:
		a.free[i] = blockRange{freed.base, freed.count + a.free[i].count}
	default:
		a.free = slices.Insert(a.free, i, freed)
	}
}

// Write fills a range with backend indices. No record may name it yet.
func (a *Arena) Write(table SlotRange, backends []uint32) error {
	if len(backends) != int(table.Count) {
		return fmt.Errorf("write %d slots into a table of %d", len(backends), table.Count)
	}
	if len(backends) == 0 {
		return nil
	}
	a.raw = a.raw[:0]
	for _, index := range backends {
		a.raw = binary.NativeEndian.AppendUint32(a.raw, index)
	}
	if err := a.memory.write(a.raw, 4*int64(table.Base)); err != nil {
		return fmt.Errorf("write slots at %d: %w", table.Base, err)
	}
	return nil
}

// Read returns the backend indices of a range.
func (a *Arena) Read(table SlotRange) ([]uint32, error) {
	raw := make([]byte, 4*int(table.Count))
	if len(raw) == 0 {
		return nil, nil
	}
	if err := a.memory.read(raw, 4*int64(table.Base)); err != nil {
		return nil, fmt.Errorf("read slots at %d: %w", table.Base, err)
	}
	backends := make([]uint32, table.Count)
	for i := range backends {
		backends[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	return backends, nil
}

// ArenaUse says how full an arena is, in blocks.
type ArenaUse struct {
	Blocks      uint32 // all of them
	Free        uint32
	LargestFree uint32 // the largest table that still fits
}

// Use returns how full the arena is.
func (a *Arena) Use() ArenaUse {
	use := ArenaUse{Blocks: a.blocks}
	for _, hole := range a.free {
		use.Free += hole.count
		use.LargestFree = max(use.LargestFree, hole.count)
	}
	return use
}
