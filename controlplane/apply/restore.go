package apply

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// restore reads back what the maps hold. A predecessor may have stopped between any two writes: a record
// that no frontend names is retired, of two records of one service the younger counts, and the difference
// to what is desired does the rest.
func restore(set *maps.Set, arena *maps.Arena) (*state, error) {
	s := &state{
		services: make(map[compile.ID]*service),
		backends: make(map[backendKey]*backend),
		owners:   make(map[maps.FrontendKey]*service),
		arena:    arena,

		frontendLimit: set.Frontends.MaxEntries(),
	}
	byIndex, err := s.restoreBackends(set)
	if err != nil {
		return nil, err
	}
	records, err := s.restoreRecords(set, byIndex)
	if err != nil {
		return nil, err
	}
	if err := s.restoreFrontends(set, records); err != nil {
		return nil, err
	}
	s.settle(records)
	s.retired.take(&s.retiring)
	s.indices = newPool(set.Services.MaxEntries(), records)
	s.ids = newPool(set.ServiceStats.MaxEntries(), idsOf(records))
	s.backendIndices = newPool(set.Backends.MaxEntries(), byIndex)
	return s, nil
}

func (s *state) restoreBackends(set *maps.Set) (map[uint32]*backend, error) {
	byIndex := make(map[uint32]*backend)
	var index uint32
	var record maps.Backend
	entries := set.Backends.Iterate()
	for entries.Next(&index, &record) {
		if record.Generation == 0 {
			continue
		}
		b := &backend{
			key: backendKey{
				address:  netip.AddrPortFrom(record.Address.Addr(), record.Port),
				protocol: compile.Protocol(record.Protocol),
			},
			index: index, generation: record.Generation, flags: record.Flags,
		}
		byIndex[index] = b
		s.generation = max(s.generation, record.Generation)
		if older, twice := s.backends[b.key]; twice && older.generation > b.generation {
			s.retired.backends = append(s.retired.backends, b)
			continue
		} else if twice {
			s.retired.backends = append(s.retired.backends, older)
		}
		s.backends[b.key] = b
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read map backends: %w", err)
	}
	return byIndex, nil
}

// restoreRecords reads every record that has a name, by index.
func (s *state) restoreRecords(set *maps.Set, byIndex map[uint32]*backend) (map[uint32]*service, error) {
	records := make(map[uint32]*service)
	var index uint32
	var name maps.ServiceName
	entries := set.ServiceNames.Iterate()
	for entries.Next(&index, &name) {
		restored, err := s.restoreRecord(set, index, name, byIndex)
		if err != nil {
			return nil, err
		}
		records[index] = restored
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read map service_names: %w", err)
	}
	return records, nil
}

func (s *state) restoreRecord(set *maps.Set, index uint32, name maps.ServiceName,
	byIndex map[uint32]*backend,
) (*service, error) {
	restored := &service{index: index, frontends: make(map[maps.FrontendKey]struct{})}
	if err := set.Services.Lookup(index, &restored.record); err != nil {
		return nil, fmt.Errorf("read service record %d: %w", index, err)
	}
	s.generation = max(s.generation, restored.record.Generation)
	id, err := compile.ParseID(string(bytes.TrimRight(name.Name[:], "\x00")))
	if err != nil {
		return restored, nil // of no service we know: no desired state will ask for it
	}
	restored.id = id
	if restored.inside, err = s.restoreTable(restored, restored.record.Inside, byIndex); err != nil {
		return nil, err
	}
	if restored.outside, err = s.restoreTable(restored, restored.record.Outside, byIndex); err != nil {
		return nil, err
	}
	return restored, nil
}

// restoreTable takes the range of a table and the backends it names.
func (s *state) restoreTable(of *service, table maps.SlotRange, byIndex map[uint32]*backend) (uint64, error) {
	if !s.arena.Reserve(table) {
		return 0, fmt.Errorf("read back %s: its table at slot %d overlaps another: %w", of.id, table.Base, maps.ErrLayout)
	}
	indices, err := s.arena.Read(table)
	if err != nil {
		return 0, err
	}
	known := make(map[*backend]struct{}, len(of.backends))
	for _, b := range of.backends {
		known[b] = struct{}{}
	}
	for _, index := range indices {
		b := byIndex[index]
		if _, seen := known[b]; seen || b == nil {
			continue
		}
		known[b] = struct{}{}
		of.backends = append(of.backends, b)
		b.references++
	}
	return tableHash(indices), nil
}

// restoreFrontends ties each frontend to the record it names. One that names none is kept in owners without
// a service, to be overwritten or deleted.
func (s *state) restoreFrontends(set *maps.Set, records map[uint32]*service) error {
	var key maps.FrontendKey
	var value maps.Frontend
	entries := set.Frontends.Iterate()
	for entries.Next(&key, &value) {
		owner := records[value.Service]
		if owner != nil && key.Generation(value) != owner.record.Generation {
			owner = nil
		}
		s.owners[key] = owner
		if owner != nil {
			owner.frontends[key] = struct{}{}
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read map frontends: %w", err)
	}
	return nil
}

// settle picks the record of each service: the youngest that a frontend names. The others are retired.
func (s *state) settle(records map[uint32]*service) {
	for _, restored := range records {
		current, known := s.services[restored.id]
		switch {
		case len(restored.frontends) == 0 || restored.id == (compile.ID{}):
			s.orphan(restored)
		case !known:
			s.services[restored.id] = restored
		case current.record.Generation < restored.record.Generation:
			s.orphan(current)
			s.services[restored.id] = restored
		default:
			s.orphan(restored)
		}
	}
	for _, b := range s.backends {
		if b.references == 0 {
			s.retireBackend(b)
		}
	}
	s.retireOrphanIDs(records)
}

// orphan retires a record; frontends that still name it belong to nobody.
func (s *state) orphan(record *service) {
	for key := range record.frontends {
		s.owners[key] = nil
	}
	s.retireRecord(record)
}

// retireOrphanIDs retires the ids of records whose service has no record left.
func (s *state) retireOrphanIDs(records map[uint32]*service) {
	live := make(map[uint32]struct{})
	for _, current := range s.services {
		live[current.record.Id] = struct{}{}
	}
	for id := range idsOf(records) {
		if _, inUse := live[id]; !inUse && id != 0 {
			s.retired.ids = append(s.retired.ids, id)
		}
	}
}

func idsOf(records map[uint32]*service) map[uint32]struct{} {
	ids := make(map[uint32]struct{}, len(records))
	for _, record := range records {
		ids[record.record.Id] = struct{}{}
	}
	return ids
}
