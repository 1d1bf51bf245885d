// Package apply makes the maps hold what is desired. It is their only writer. Whatever moment a program
// looks at, a frontend leads to a table of the service as it was or as it is, whole:
//
//  1. backends that are new
//  2. tables, in free ranges of the arena
//  3. service records, at free indices, and their names
//  4. frontends, each replaced by one aligned 64-bit write
//  5. frontends that are gone
//
// What is then named by nothing is given out again after a grace period; backend indices and service ids
// only after a whole sweep of the flow tables has not met them.
package apply

import (
	"errors"
	"fmt"
	gomaps "maps"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Applier writes services to the maps. It is safe for concurrent use.
type Applier struct {
	set    *maps.Set
	log    *zap.Logger
	arena  *maps.Arena
	kernel *mapsWriter
	writer writer
	grace  func() error

	mu       sync.Mutex
	state    *state // nil: to be read back before anything else
	problems map[compile.ID]compile.Problem
	unplaced map[compile.ID]compile.Service // for which there was no room; tried again with every change and sweep
}

// New reads back what the maps hold.
func New(set *maps.Set, log *zap.Logger) (*Applier, error) {
	a := &Applier{set: set, log: log, grace: maps.Grace}
	a.forgetProblems()
	if err := a.readBack(); err != nil {
		return nil, err
	}
	return a, nil
}

// readBack forgets what it knows and reads the maps.
func (a *Applier) readBack() error {
	arena, err := maps.NewArena(a.set.Slots)
	if err != nil {
		return err
	}
	restored, err := restore(a.set, arena)
	if err != nil {
		return fmt.Errorf("read back the maps: %w", err)
	}
	a.arena, a.state = arena, restored
	if a.kernel == nil {
		a.kernel = &mapsWriter{set: a.set}
		a.writer = a.kernel
	}
	a.kernel.arena = arena
	return nil
}

func (a *Applier) forgetProblems() {
	a.problems = make(map[compile.ID]compile.Problem)
	a.unplaced = make(map[compile.ID]compile.Service)
}

// ready reads the maps back where a failed write has left them unknown.
func (a *Applier) ready() error {
	if a.state != nil {
		return nil
	}
	return a.readBack()
}

// Writes returns how many elements and tables have been written or deleted since New.
func (a *Applier) Writes() uint64 { return a.kernel.writes.Load() }

// Arena returns how full the arena is.
func (a *Applier) Arena() maps.ArenaUse {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.arena.Use()
}

// Sync makes the maps hold these services and no others. Where they do already, nothing is written.
func (a *Applier) Sync(all []compile.Service) ([]compile.Problem, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return nil, err
	}
	wanted := make(map[compile.ID]struct{}, len(all))
	for _, desired := range all {
		wanted[desired.ID] = struct{}{}
	}
	var removed []compile.ID
	for id := range a.state.services {
		if _, keep := wanted[id]; !keep {
			removed = append(removed, id)
		}
	}
	a.forgetProblems()
	return a.commit(all, removed, a.strayFrontends(all))
}

// strayFrontends returns frontends that belong to no service, left by a predecessor, and are not desired.
func (a *Applier) strayFrontends(all []compile.Service) []maps.FrontendKey {
	desired := make(map[maps.FrontendKey]struct{})
	for _, want := range all {
		for _, key := range frontendKeys(want) {
			desired[key] = struct{}{}
		}
	}
	var stray []maps.FrontendKey
	for key, owner := range a.state.owners {
		if _, keep := desired[key]; owner == nil && !keep {
			stray = append(stray, key)
		}
	}
	return stray
}

// Apply writes changed services and takes out removed ones. Either may already be as they should.
func (a *Applier) Apply(changed []compile.Service, removed []compile.ID) ([]compile.Problem, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return nil, err
	}
	return a.commit(changed, removed, nil)
}

// commit plans and makes the writes. A service for which there is no room stays as it was.
func (a *Applier) commit(changed []compile.Service, removed []compile.ID,
	stray []maps.FrontendKey,
) ([]compile.Problem, error) {
	plan := newPlan(a.state)
	plan.drop(stray)
	for _, id := range removed {
		a.settleProblem(id)
		plan.remove(id)
	}
	a.planAll(plan, changed)
	a.planAll(plan, a.takeUnplaced(changed))
	if err := plan.write(a.writer, a.set); err != nil {
		a.state = nil // how far it went is known to the maps alone
		return nil, err
	}
	a.state.retired.take(&a.state.retiring)
	return slices.Collect(gomaps.Values(a.problems)), nil
}

func (a *Applier) settleProblem(id compile.ID) {
	delete(a.problems, id)
	delete(a.unplaced, id)
}

// takeUnplaced returns the services without room that this change does not bring anyway.
func (a *Applier) takeUnplaced(changed []compile.Service) []compile.Service {
	if len(a.unplaced) == 0 {
		return nil
	}
	brought := make(map[compile.ID]struct{}, len(changed))
	for _, desired := range changed {
		brought[desired.ID] = struct{}{}
	}
	var again []compile.Service
	for id, desired := range a.unplaced {
		if _, tried := brought[id]; !tried {
			again = append(again, desired)
		}
	}
	return again
}

// planAll plans every changed service. Room may come from what was retired before: it is settled once at most.
func (a *Applier) planAll(plan *plan, changed []compile.Service) {
	settled := false
	for _, desired := range changed {
		a.settleProblem(desired.ID)
		err := plan.put(desired)
		if errors.Is(err, errNoRoom) && !settled {
			settled = true
			if settleErr := a.settleRetired(); settleErr != nil {
				a.log.Warn("give back what is out of use", zap.Error(settleErr))
			}
			err = plan.put(desired)
		}
		if err != nil {
			a.unplaced[desired.ID] = desired
			a.problems[desired.ID] = compile.Problem{
				Object:  "Service " + desired.ID.Namespace + "/" + desired.ID.Name,
				Reason:  "NoRoom",
				Message: fmt.Sprintf("%s is not programmed: %v", desired.ID, err),
			}
		}
	}
}
