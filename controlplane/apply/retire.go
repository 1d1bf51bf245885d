package apply

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/maps"
)

// sweepsBeforeReuse is how many sweeps in a row must not meet an index before it is given out again. One is
// not enough: a walk over a hash misses an element whose neighbour in the bucket is deleted at that moment.
const sweepsBeforeReuse = 2

// retiree is what may still be in use by programs that run: one of a record index, a range of slots, or a
// backend or service that leaves.
type retiree struct {
	index   uint32
	at      maps.SlotRange
	leaving *leaving
}

// leaving is a backend or a service that no record names. It is dropped from the lists when it has come back
// meanwhile, which shows in its `leaving` being another one or none.
type leaving struct {
	backend *backend
	service *service
	sweeps  int // in a row that have not met it
}

func (l *leaving) isOver() bool {
	if l.backend != nil {
		return l.backend.leaving != l
	}
	return l.service.leaving != l
}

// retire takes the tables of a record that no frontend names out of use. It returns the backends that no table
// names then.
func (s *state) retire(r *record) (gone []*backend) {
	for _, t := range r.tables() {
		t.records--
		if t.records > 0 {
			continue
		}
		if t.at.Count > 0 {
			s.retired = append(s.retired, retiree{at: t.at})
		}
		for _, b := range t.backends {
			b.tables--
			if b.tables == 0 {
				s.leave(&leaving{backend: b})
				gone = append(gone, b)
			}
		}
	}
	return gone
}

// depart takes a service out. Its name stays, at the index of its last record, until no flow names its id.
func (s *state) depart(service *service) (gone []*backend) {
	gone = s.retire(service.current)
	service.current = nil
	delete(s.services, service.name)
	s.departed[service.name] = service
	s.leave(&leaving{service: service})
	return gone
}

func (s *state) leave(l *leaving) {
	if l.backend != nil {
		l.backend.leaving = l
	} else {
		l.service.leaving = l
	}
	s.retired = append(s.retired, retiree{leaving: l})
}

// backendsLeaving returns how many backends wait for flows to end.
func (s *state) backendsLeaving() int {
	count := 0
	for _, l := range s.awaiting {
		if l.backend != nil && !l.isOver() {
			count++
		}
	}
	return count
}

// releaseRetired waits a grace period and gives back what has been retired.
func (a *Applier) releaseRetired() error {
	if err := a.grace(); err != nil {
		return err
	}
	a.release(len(a.state.retired))
	return nil
}

// release gives back the first of what has been retired: a grace period has passed since.
func (a *Applier) release(count int) {
	s := a.state
	for _, r := range s.retired[:count] {
		switch {
		case r.leaving == nil:
			s.arena.Free(r.at)
			if r.index != 0 {
				s.records.put(r.index)
			}
			a.room = true
		case !r.leaving.isOver():
			s.awaiting = append(s.awaiting, r.leaving)
		}
	}
	s.retired = append([]retiree(nil), s.retired[count:]...)
	s.releases++
}

// Sweep is what was awaiting the end of flows when a sweep began.
type Sweep struct {
	state   *state
	count   int
	endings []maps.EndingKey // that are due
}

// Endings tells how many pairs of service and backend there are whose flows end.
func (s Sweep) Endings() int { return len(s.endings) }

// BeginSweep is called before a sweep of the flow tables; its result goes to EndSweep. It lasts a grace
// period, during which Sync and Apply go on.
func (a *Applier) BeginSweep() (Sweep, error) {
	if err := a.releaseOld(); err != nil {
		return Sweep{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == nil {
		if err := a.try(a.convergeAll); err != nil {
			return Sweep{}, err
		}
	}
	due, err := a.state.dueEndings()
	return Sweep{state: a.state, count: len(a.state.awaiting), endings: due}, err
}

// releaseOld gives back what had been retired when it was called.
func (a *Applier) releaseOld() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state
	if s == nil || len(s.retired) == 0 {
		return nil
	}
	count, releases := len(s.retired), s.releases
	a.mu.Unlock()
	err := a.grace()
	a.mu.Lock()
	if err != nil {
		return err
	}
	if a.state == s && s.releases == releases { // else a change has been in need of room, and done it
		a.release(count)
	}
	return nil
}

// endBatch is how many indices are given back before a change may come between.
const endBatch = 256

// EndSweep tells that a whole sweep, embryos before flows, has been made with that epoch. Indices that it,
// and the one before, have not met are given out again.
func (a *Applier) EndSweep(sweep Sweep, epoch uint32) error {
	var met []*leaving
	for done := 0; done < sweep.count; done += endBatch {
		some, err := a.endSome(sweep, min(endBatch, sweep.count-done), epoch)
		if err != nil {
			return err
		}
		met = append(met, some...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == nil || a.state != sweep.state {
		return nil
	}
	a.state.awaiting = append(a.state.awaiting, met...)
	return a.try(func() error {
		if err := a.endingsSwept(sweep.endings); err != nil {
			return err
		}
		return a.converge(nil, nil)
	})
}

// endSome takes the first of those that wait, frees what can be, and returns those that must wait on.
func (a *Applier) endSome(sweep Sweep, count int, epoch uint32) (on []*leaving, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == nil || a.state != sweep.state {
		return nil, nil // read back anew meanwhile, and they with it
	}
	some := a.state.awaiting[:count]
	a.state.awaiting = a.state.awaiting[count:]
	for _, l := range some {
		if l.isOver() {
			continue
		}
		if l.sweeps++; a.isMet(l, epoch) {
			l.sweeps = 0
		}
		if l.sweeps < sweepsBeforeReuse {
			on = append(on, l)
			continue
		}
		if err := a.free(l); err != nil {
			a.state = nil
			return nil, err
		}
	}
	return on, nil
}

// isMet tells whether a flow named the index in that epoch. What cannot be read counts as named.
func (a *Applier) isMet(l *leaving, epoch uint32) bool {
	var usage *ebpf.Map
	var index, last uint32
	if l.backend != nil {
		usage, index = a.set.BackendUsage, l.backend.index
	} else {
		usage, index = a.set.ServiceUsage, l.service.id
	}
	return usage.Lookup(index, &last) != nil || last == epoch
}

// free gives an index back, with its counters at zero.
func (a *Applier) free(l *leaving) error {
	a.room = true
	if l.service != nil {
		return a.freeService(l.service)
	}
	b := l.backend
	if err := a.closeTarget(b); err != nil {
		return err
	}
	if err := a.clearTraffic(a.set.BackendStats, b.index); err != nil {
		return err
	}
	if err := a.write.put(a.set.BackendLoads, b.index, &maps.BackendLoad{}); err != nil {
		return err
	}
	if err := a.write.put(a.set.Backends, b.index, &maps.Backend{}); err != nil {
		return err
	}
	a.state.backendIndices.put(b.index)
	b.index, b.record, b.leaving = 0, b.key().record(), nil
	a.state.forget(b)
	return nil
}

func (a *Applier) freeService(gone *service) error {
	if err := a.clearTraffic(a.set.ServiceStats, gone.id); err != nil {
		return err
	}
	if err := a.write.delete(a.set.ServiceNames, gone.named); err != nil {
		return err
	}
	a.state.ids.put(gone.id)
	a.state.records.put(gone.named)
	gone.leaving = nil
	delete(a.state.departed, gone.name)
	return nil
}

// clearTraffic zeroes the counters of an index on every CPU.
func (a *Applier) clearTraffic(counters *ebpf.Map, index uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the CPUs: %w", err)
	}
	return a.write.put(counters, index, make([]maps.Traffic, cpus))
}
