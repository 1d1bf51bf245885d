// Package apply makes the maps hold what is desired. It is their only writer. Whatever moment a program
// looks at, a frontend leads to a table of the service as it was or as it is, whole, for each service is
// written in this order:
//
//  1. source ranges that are new
//  2. whose flows end, or do not after all
//  3. backends that are new; then, where tunnels lead to them, their targets
//  4. tables, in free ranges of the arena
//  5. a service record at a free index, and its name
//  6. frontends, each replaced in place, as one aligned 64-bit value
//  7. frontends and source ranges that are gone
//
// What is then named by nothing is given out again after a grace period (maps.Grace); backend indices and
// service ids only after sweeps of the flow tables have not met them either.
//
// A writer that stops at any point leaves maps that a successor understands: see load.
package apply

import (
	"fmt"
	gomaps "maps"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Applier writes services to the maps. It is safe for concurrent use.
type Applier struct {
	set    *maps.Set
	log    *zap.Logger
	kernel *kernelWriter
	write  writer
	grace  func() error
	fixed  uint32      // size of Maglev tables; 0: as many slots as the backends need
	send   func() bool // packets may be sent in tunnels
	take   func() bool // and are taken out of those of others

	mu      sync.Mutex
	state   *state                          // nil: a write has failed, the maps are to be read back
	wanted  map[compile.ID]*compile.Service // all that is desired
	synced  bool                            // wanted is all there is: what it lacks may go
	leftOut map[compile.ID]*shortage        // those of them for which there was no room
	room    bool                            // has come free since those were tried

	standing atomic.Pointer[[]compile.Problem] // as of the last work that has not failed
}

// Option changes how an Applier writes.
type Option func(*Applier)

// MaglevSize gives all Maglev tables that size (maps.IsMaglevSize); 0: each has as many slots as its backends need.
func MaglevSize(size uint32) Option {
	return func(a *Applier) { a.fixed = size }
}

// New reads back what the maps hold. It writes nothing.
func New(set *maps.Set, log *zap.Logger, options ...Option) (*Applier, error) {
	return open(set, log, maps.Grace, options...)
}

func open(set *maps.Set, log *zap.Logger, grace func() error, options ...Option) (*Applier, error) {
	kernel := &kernelWriter{}
	a := &Applier{
		set: set, log: log, kernel: kernel, write: kernel, grace: grace, send: never, take: never,
		wanted: map[compile.ID]*compile.Service{}, leftOut: map[compile.ID]*shortage{},
	}
	for _, option := range options {
		option(a)
	}
	return a, a.read()
}

// read takes the state from the maps. What a program may still be using of what they name no more is out of
// use after the grace period.
func (a *Applier) read() error {
	if err := a.grace(); err != nil {
		return err
	}
	arena := maps.NewArena(a.set.Slots)
	loaded, err := load(a.set, arena, a.fixed)
	if err != nil {
		return fmt.Errorf("read back the maps: %w", err)
	}
	a.state, a.kernel.arena = loaded, arena
	return nil
}

// Writes returns how many elements and tables have been written or deleted since New.
func (a *Applier) Writes() uint64 { return a.kernel.writes.Load() }

// Arena returns how full the arena is.
func (a *Applier) Arena() maps.ArenaUse {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == nil {
		return maps.ArenaUse{}
	}
	return a.state.arena.Use()
}

// Problems returns what stands in the way of services now. A sweep may have made room since the last change. It waits
// for no write that goes on.
func (a *Applier) Problems() []compile.Problem {
	if standing := a.standing.Load(); standing != nil {
		return slices.Clone(*standing)
	}
	return nil
}

func (a *Applier) problems() []compile.Problem {
	var problems []compile.Problem
	for _, id := range slices.SortedFunc(gomaps.Keys(a.leftOut), compile.ID.Compare) {
		problems = append(problems, a.leftOut[id].problem(id, a.state.services[id] != nil))
	}
	return append(problems, a.state.targets.problem()...)
}

// Sync makes the maps hold these services and no others. Where they do already, nothing is written. After an error Sync
// or Apply is to be called again.
func (a *Applier) Sync(all []compile.Service) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wanted = make(map[compile.ID]*compile.Service, len(all))
	a.want(all)
	a.synced = true
	return a.try(a.convergeAll)
}

// Apply writes changed services and takes out removed ones. Either may already be as they should. The cost
// depends on them alone. Errors are as with Sync.
func (a *Applier) Apply(changed []compile.Service, removed []compile.ID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.want(changed)
	for _, id := range removed {
		delete(a.wanted, id)
	}
	if a.state == nil && a.synced {
		return a.try(a.convergeAll)
	}
	return a.try(func() error { return a.converge(pointers(changed), removed) })
}

// want takes in what services are to be.
func (a *Applier) want(changed []compile.Service) {
	for _, want := range pointers(changed) {
		a.wanted[want.ID] = want
	}
}

func pointers(services []compile.Service) []*compile.Service {
	list := make([]*compile.Service, len(services))
	for i := range services {
		list[i] = &services[i]
	}
	return list
}

// try does work that writes. When it fails only the maps know how far it got.
func (a *Applier) try(work func() error) error {
	if a.state == nil {
		if err := a.read(); err != nil {
			return err
		}
	}
	if err := work(); err != nil {
		a.state = nil
		return err
	}
	problems := a.problems()
	a.standing.Store(&problems)
	return nil
}

// convergeAll makes the maps hold all that is desired and nothing else. Before Sync that is not known: what a predecessor
// has left stays (rule S09).
func (a *Applier) convergeAll() error {
	if !a.synced {
		return nil
	}
	clear(a.leftOut)
	changed := slices.SortedFunc(gomaps.Values(a.wanted), func(x, y *compile.Service) int { return x.ID.Compare(y.ID) })
	removed := slices.Concat(unwanted(a.wanted, a.state.services), unwanted(a.wanted, a.state.listings))
	slices.SortFunc(removed, compile.ID.Compare)
	removed = slices.Compact(removed)
	if err := a.converge(changed, removed); err != nil {
		return err
	}
	if err := a.clearStrays(); err != nil {
		return err
	}
	return a.endOrphans()
}

// unwanted returns which of what is there is not desired.
func unwanted[V any](wanted map[compile.ID]*compile.Service, there map[compile.ID]V) []compile.ID {
	var ids []compile.ID
	for id := range there {
		if _, keep := wanted[id]; !keep {
			ids = append(ids, id)
		}
	}
	return ids
}
