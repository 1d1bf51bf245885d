package apply

import (
	"slices"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// load reads back what the maps hold. Its writer may have stopped between any two writes:
//
//   - a record that a frontend names is whole, for it was written before; where frontends name several records of
//     a service, each is right, and the first change leads them to one;
//   - a name whose record no frontend names is that of a service that has departed, or came not to be;
//   - a backend that no such record's tables name is leaving, or came not to be; flows may name it;
//   - everything else is free.
func load(set *maps.Set, arena *maps.Arena, fixed uint32) (*state, error) {
	l := &reading{
		state: &state{
			services:      map[compile.ID]*service{},
			departed:      map[compile.ID]*service{},
			backends:      map[backendKey]*backend{},
			frontends:     map[maps.FrontendKey]lead{},
			listings:      map[compile.ID][]listing{},
			arena:         arena,
			fixed:         fixed,
			generations:   make([]uint32, set.Services.MaxEntries()),
			frontendLimit: int(set.Frontends.MaxEntries()),
		},
		values:  make([]maps.Service, set.Services.MaxEntries()),
		maxIDs:  set.ServiceStats.MaxEntries(),
		live:    map[uint32]*record{},
		names:   map[uint32]maps.ServiceName{},
		ids:     map[uint32]*service{},
		indices: map[uint32]*backend{},
		tables:  map[maps.SlotRange]*table{},
		marks:   make([]uint32, set.Backends.MaxEntries()),
	}
	if err := l.read(set); err != nil {
		return nil, err
	}
	l.settle(set)
	return l.state, nil
}

// reading is what is known while reading back.
type reading struct {
	*state
	values  []maps.Service
	maxIDs  uint32
	live    map[uint32]*record // by index: those that frontends name
	names   map[uint32]maps.ServiceName
	ids     map[uint32]*service
	indices map[uint32]*backend
	tables  map[maps.SlotRange]*table
	filled  uint32   // tables
	marks   []uint32 // by backend index: the last of them that names it
}

// read reads the maps.
func (l *reading) read(set *maps.Set) error {
	err := maps.Each(set.Services, func(index uint32, value maps.Service) bool {
		l.values[index], l.generations[index] = value, value.Generation
		return true
	})
	if err != nil {
		return err
	}
	err = maps.Each(set.ServiceNames, func(index uint32, name maps.ServiceName) bool {
		l.names[index] = name
		return true
	})
	if err != nil {
		return err
	}
	err = maps.Each(set.Backends, func(index uint32, value maps.Backend) bool {
		l.addBackend(index, value)
		return true
	})
	if err != nil {
		return err
	}
	if l.sources, err = readSources(set); err != nil {
		return err
	}
	if l.endings, err = readEndings(set); err != nil {
		return err
	}
	if l.targets, err = readTargets(set); err != nil {
		return err
	}
	return maps.Each(set.Frontends, func(key maps.FrontendKey, value maps.Frontend) bool {
		l.addFrontend(key, value)
		return true
	})
}

func (l *reading) addBackend(index uint32, value maps.Backend) {
	if value.Generation == 0 || index == 0 {
		return
	}
	b := &backend{index: index, record: value}
	l.indices[index] = b
	if l.backends[b.key()] == nil {
		l.backends[b.key()] = b
	}
}

// addFrontend finds the record that a frontend names. None does where the seal does not fit.
func (l *reading) addFrontend(key maps.FrontendKey, value maps.Frontend) {
	l.frontends[key] = lead{}
	index := value.Index()
	if index == 0 || int(index) >= len(l.values) || l.values[index].Generation != key.Generation(value) {
		return
	}
	r := l.live[index]
	if r == nil {
		r = &record{index: index, value: l.values[index]}
		l.live[index] = r
	}
	r.frontends++
	l.frontends[key] = lead{r, value.Kind()}
}

// settle makes sense of what was read. Everything goes by index, so that the outcome is always the same.
func (l *reading) settle(set *maps.Set) {
	for _, index := range sortedKeys(l.live) {
		l.settleRecord(l.live[index])
	}
	for key, is := range l.frontends {
		if is.record != nil {
			is.record.service.frontends = append(is.record.service.frontends, key)
		}
	}
	used := map[uint32]*record{}
	for index, r := range l.live {
		used[index] = r
	}
	for _, index := range sortedKeys(l.names) {
		if l.live[index] == nil {
			l.settleName(index)
			used[index] = nil
		}
	}
	for _, index := range sortedKeys(l.indices) {
		if b := l.indices[index]; b.tables == 0 {
			b.leaving = &leaving{backend: b}
			l.awaiting = append(l.awaiting, b.leaving)
		}
	}
	l.records = newPool(set.Services.MaxEntries(), used)
	l.state.ids = newPool(l.maxIDs, l.ids)
	l.backendIndices = newPool(set.Backends.MaxEntries(), l.indices)
}

func sortedKeys[V any](m map[uint32]V) []uint32 {
	keys := make([]uint32, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// settleRecord finds the service of a record that frontends name, and its tables.
func (l *reading) settleRecord(r *record) {
	weighs := func(flag uint16) bool { return r.value.Flags&flag != 0 }
	insideWeighted, outsideWeighted := weighs(maps.ServiceInsideWeighted), weighs(maps.ServiceOutsideWeighted)
	r.inside = l.tableAt(r.value.Inside, shapeOf(r.value.InsideAlgorithm, insideWeighted), insideWeighted)
	r.outside = l.tableAt(r.value.Outside, shapeOf(r.value.OutsideAlgorithm, outsideWeighted), outsideWeighted)
	if r.value.AffinityTimeout > 0 {
		r.insideMembers = l.tableAt(r.value.InsideMembers, shapeMembers, false)
		r.outsideMembers = l.tableAt(r.value.OutsideMembers, shapeMembers, false)
	}
	for _, t := range r.tables() {
		t.records++
		if t.records > 1 {
			continue
		}
		for _, b := range t.backends {
			b.tables++
		}
	}
	r.service = l.ownerOf(r)
	if r.service.current == nil {
		r.service.current, r.service.named = r, r.index
		return
	}
	r.service.others = append(r.service.others, r)
}

// ownerOf returns the service whose name and id a record has, or a stray one of its own.
func (l *reading) ownerOf(r *record) *service {
	id, err := compile.ParseID(l.names[r.index].String())
	known := l.services[id]
	switch {
	case err != nil || l.names[r.index].Id != r.value.Id:
	case known != nil && known.id == r.value.Id:
		return known
	case known == nil && l.isFreeID(r.value.Id):
		owner := &service{name: id, id: r.value.Id}
		l.services[id], l.ids[owner.id] = owner, owner
		return owner
	}
	stray := &service{}
	l.strays = append(l.strays, stray)
	return stray
}

// isFreeID tells whether an id is one, and no other service's.
func (l *reading) isFreeID(id uint32) bool {
	return id > 0 && id < l.maxIDs && l.ids[id] == nil
}

// settleName finds the departed service of a name that no frontend leads to.
func (l *reading) settleName(index uint32) {
	name := l.names[index]
	id, err := compile.ParseID(name.String())
	if err != nil || l.services[id] != nil || l.departed[id] != nil || index == 0 || !l.isFreeID(name.Id) {
		l.leftovers = append(l.leftovers, index)
		return
	}
	gone := &service{name: id, id: name.Id, named: index}
	l.departed[id], l.ids[gone.id] = gone, gone
	gone.leaving = &leaving{service: gone}
	l.awaiting = append(l.awaiting, gone.leaving)
}

// tableAt reads a table. Records that share its range share it: a change kept it.
func (l *reading) tableAt(at maps.SlotRange, shape shape, weighted bool) *table {
	if at.Count == 0 {
		return &table{shape: shape}
	}
	if known := l.tables[at]; known != nil && known.shape == shape {
		return known
	}
	t := &table{at: at, shape: shape, fixed: l.fixed}
	if !l.arena.Reserve(at) {
		return &table{shape: shape, damaged: true} // not ours to give back
	}
	l.tables[at] = t
	l.fill(t, weighted)
	return t
}

// fill finds the backends of a table, and whether they would make the same. With weights that is not known before
// there is something to compare it with.
func (l *reading) fill(t *table, weighted bool) {
	slots, err := l.arena.Read(t.at)
	l.filled++
	for _, index := range slots {
		if int(index) >= len(l.marks) || l.marks[index] == l.filled {
			continue
		}
		l.marks[index] = l.filled
		if b := l.indices[index]; b != nil {
			t.backends = append(t.backends, b)
		}
	}
	slices.SortFunc(t.backends, compareKeys)
	if weighted {
		t.found, t.damaged = slots, err != nil
		return
	}
	t.damaged = err != nil || !slices.Equal(t.slots(), slots)
}
