package maps

import (
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

// Arena hands out ranges of the slots map and writes tables to them as memory. It is not safe for
// concurrent use.
type Arena struct {
	memory *ebpf.Memory
	free   []blockRange // sorted by base, never adjacent
	blocks uint32
}

// blockRange is a run of blocks.
type blockRange struct{ base, count uint32 }

// NewArena maps the slots into memory. All of it is free but block 0, which is never used.
func NewArena(slots *ebpf.Map) (*Arena, error) {
	memory, err := slots.Memory()
	if err != nil {
		return nil, fmt.Errorf("map the slots into memory: %w", err)
	}
	blocks := slots.MaxEntries()
	return &Arena{memory: memory, free: []blockRange{{1, blocks - 1}}, blocks: blocks}, nil
}

// blocksOf returns how many blocks hold a number of slots.
func blocksOf(slots uint32) uint32 {
	return (slots + SlotsPerBlock - 1) / SlotsPerBlock
}

// Alloc takes a range for a table of that many slots: the first that is large enough. A table of no slots
// takes none.
func (a *Arena) Alloc(slots uint32) (SlotRange, error) {
	if slots == 0 {
		return SlotRange{}, nil
	}
	need := blocksOf(slots)
	for i := range a.free {
		if a.free[i].count < need {
			continue
		}
		base := a.free[i].base
		a.free[i] = blockRange{base + need, a.free[i].count - need}
		if a.free[i].count == 0 {
			a.free = slices.Delete(a.free, i, i+1)
		}
		return SlotRange{Base: base * SlotsPerBlock, Count: slots}, nil
	}
	return SlotRange{}, ErrArenaFull
}

// Reserve takes exactly this range, as a table that is in use already has it. It reports whether it was free.
func (a *Arena) Reserve(table SlotRange) bool {
	if table.Count == 0 {
		return true
	}
	base, count := table.Base/SlotsPerBlock, blocksOf(table.Count)
	for i, hole := range a.free {
		if base < hole.base || base+count > hole.base+hole.count {
			continue
		}
		rest := []blockRange{{hole.base, base - hole.base}, {base + count, hole.base + hole.count - base - count}}
		rest = slices.DeleteFunc(rest, func(r blockRange) bool { return r.count == 0 })
		a.free = slices.Replace(a.free, i, i+1, rest...)
		return true
	}
	return false
}

// Free gives a range back. No program may be reading it any more.
func (a *Arena) Free(table SlotRange) {
	if table.Count == 0 {
		return
	}
	freed := blockRange{table.Base / SlotsPerBlock, blocksOf(table.Count)}
	i, _ := slices.BinarySearchFunc(a.free, freed, func(x, y blockRange) int { return int(x.base) - int(y.base) })
	a.free = slices.Insert(a.free, i, freed)
	if i+1 < len(a.free) && a.free[i].base+a.free[i].count == a.free[i+1].base {
		a.free[i].count += a.free[i+1].count
		a.free = slices.Delete(a.free, i+1, i+2)
	}
	if i > 0 && a.free[i-1].base+a.free[i-1].count == a.free[i].base {
		a.free[i-1].count += a.free[i].count
		a.free = slices.Delete(a.free, i, i+1)
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
	raw := make([]byte, 0, 4*len(backends))
	for _, index := range backends {
		raw = binary.NativeEndian.AppendUint32(raw, index)
	}
	if _, err := a.memory.WriteAt(raw, 4*int64(table.Base)); err != nil {
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
	if _, err := a.memory.ReadAt(raw, 4*int64(table.Base)); err != nil {
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
