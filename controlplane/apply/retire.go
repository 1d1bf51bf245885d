package apply

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/maps"
)

// retireRecord takes a record and its tables out of use. Its id lives on where the service has a new record.
func (s *state) retireRecord(record *service) {
	s.retiring.records = append(s.retiring.records, record.index)
	s.retiring.tables = append(s.retiring.tables, record.record.Inside, record.record.Outside)
	for _, b := range record.backends {
		b.references--
		if b.references == 0 && s.backends[b.key] == b {
			s.retireBackend(b)
		}
	}
}

// retireBackend takes a backend that no table names out of use. Should it come back, it is a new one: the
// flows of the old one are known by its index and generation.
func (s *state) retireBackend(b *backend) {
	delete(s.backends, b.key)
	s.retiring.backends = append(s.retiring.backends, b)
}

// settleRetired waits a grace period, after which no program can be reading what was retired before, and
// gives records and tables back. Ids and backends may still be named by flows: they wait for a sweep.
func (a *Applier) settleRetired() error {
	if a.state.retired.empty() {
		return nil
	}
	if err := a.grace(); err != nil {
		return err
	}
	old := a.state.retired
	a.state.retired = retired{}
	if err := a.writer.deleteNames(old.records); err != nil {
		return err
	}
	for _, index := range old.records {
		a.state.indices.put(index)
	}
	for _, table := range old.tables {
		a.state.arena.Free(table)
	}
	a.state.awaiting.ids = append(a.state.awaiting.ids, old.ids...)
	a.state.awaiting.backends = append(a.state.awaiting.backends, old.backends...)
	return nil
}

// Sweep is what was waiting for a sweep when one began. One that is not finished needs nothing more.
type Sweep struct {
	ids      []uint32
	backends []*backend
	state    *state
}

// BeginSweep is called before the flow tables are swept. Its result goes to EndSweep.
func (a *Applier) BeginSweep() (Sweep, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return Sweep{}, err
	}
	if err := a.settleRetired(); err != nil {
		a.state = nil
		return Sweep{}, fmt.Errorf("give back what is out of use: %w", err)
	}
	return Sweep{ids: a.state.awaiting.ids, backends: a.state.awaiting.backends, state: a.state}, nil
}

// EndSweep gives back the ids and backends that no flow named during the sweep of that epoch. It must have
// been a whole sweep: embryos first, then flows.
func (a *Applier) EndSweep(sweep Sweep, epoch uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == nil || a.state != sweep.state {
		return nil // read back anew meanwhile, and they with it
	}
	// What has come to wait since is behind what the sweep was begun with.
	a.state.awaiting.ids = slices.Clone(a.state.awaiting.ids[len(sweep.ids):])
	a.state.awaiting.backends = slices.Clone(a.state.awaiting.backends[len(sweep.backends):])
	for _, id := range sweep.ids {
		if named(a.set.ServiceUsage, id, epoch) {
			a.state.awaiting.ids = append(a.state.awaiting.ids, id)
			continue
		}
		a.state.ids.put(id)
	}
	if err := a.freeBackends(sweep.backends, epoch); err != nil {
		return err
	}
	if len(a.unplaced) == 0 {
		return nil
	}
	_, err := a.commit(nil, nil, nil)
	return err
}

func (a *Applier) freeBackends(backends []*backend, epoch uint32) error {
	var free []uint32
	for _, b := range backends {
		if named(a.set.BackendUsage, b.index, epoch) {
			a.state.awaiting.backends = append(a.state.awaiting.backends, b)
			continue
		}
		free = append(free, b.index)
	}
	if len(free) == 0 {
		return nil
	}
	if err := a.writer.putBackends(free, make([]maps.Backend, len(free))); err != nil {
		a.state = nil
		return fmt.Errorf("clear backends: %w", err)
	}
	for _, index := range free {
		a.state.backendIndices.put(index)
	}
	return nil
}

// named reports whether a flow named the index in that epoch. What cannot be read counts as named.
func named(usage *ebpf.Map, index, epoch uint32) bool {
	var last uint32
	return usage.Lookup(index, &last) != nil || last == epoch
}
