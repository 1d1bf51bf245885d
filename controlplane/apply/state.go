package apply

import (
	"iter"
	gomaps "maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// state is what the maps hold, as read back at the start and followed since.
type state struct {
	services  map[compile.ID]*service // that have a record
	departed  map[compile.ID]*service // removed; flows may still name their ids
	backends  map[backendKey]*backend // that are listed, or have a record
	frontends map[maps.FrontendKey]lead
	listings  map[compile.ID][]listing // what the desired services say of their backends
	sources   sources
	targets   targets
	fixed     uint32             // see table
	endings   map[uint32]endings // by service id
	strays    []*service         // with frontends, but of no name that can be read
	leftovers []uint32           // record indices whose names say nothing

	arena          *maps.Arena
	records        pool
	generations    []uint32 // by record index: the last that was given
	ids            pool
	backendIndices pool
	generation     uint32 // of backends: the last that was given
	frontendLimit  int

	retired  []retiree  // named by nothing as of the writes made; may be in use by running programs
	releases uint64     // how often some of them have been given back
	awaiting []*leaving // a grace period later: flows may still name them
}

// service is one ID.
type service struct {
	name      compile.ID
	id        uint32    // of its flows and counters; 0: it has none
	named     uint32    // the record index that its name is kept under; 0: none
	current   *record   // nil: it has departed
	others    []*record // that frontends name too: a predecessor was interrupted
	frontends []maps.FrontendKey
	leaving   *leaving
	serving   []netip.AddrPort // as it was written last, of those whose flows end; nil: not known
}

// lead is what a frontend's value says.
type lead struct {
	record *record // nil: it names none
	kind   maps.FrontendKind
}

// record is an element of map services.
type record struct {
	index     uint32
	value     maps.Service
	service   *service
	inside    *table
	outside   *table
	frontends int // that name it

	// The backends of those tables, for programs to look up whom a client has had; nil without affinity.
	insideMembers, outsideMembers *table
}

// shape is how a table is made of its backends.
type shape uint8

const (
	shapeList    shape = iota // each once, in order of the addresses
	shapeMaglev               // as maps.Maglev has them, by weight
	shapeMembers              // each once, in order of the indices
)

// table is a range of slots.
type table struct {
	at       maps.SlotRange
	shape    shape
	fixed    uint32     // size of Maglev tables; 0: as many slots as the backends need
	backends []*backend // each once, in order of the addresses
	weights  []uint32   // of the backends, for Maglev; nil: equal ones
	records  int        // that name it, once for each use they make of it
	found    []uint32   // its slots as they were read, where no weights are known that make them
	damaged  bool       // its slots are not what the backends make
}

// backendKey is what makes two endpoints the same backend. It has no pointer in it: there are as many as endpoints.
type backendKey struct {
	address  maps.Address
	port     uint16
	protocol compile.Protocol
}

func backendKeyOf(address netip.AddrPort, protocol compile.Protocol) backendKey {
	return backendKey{maps.AddressOf(address.Addr()), address.Port(), protocol}
}

// compareKeys orders backends by address and port.
func compareKeys(a, b *backend) int { return a.at().Compare(b.at()) }

// backend is an endpoint, shared by all services that list it. There may be a million: it is kept small.
type backend struct {
	record  maps.Backend // where it is, and the rest once it has an index
	index   uint32       // 0: it is not in the map
	tables  int32        // that name it
	leaving *leaving

	listed, local, terminating, tunnel int32 // by how many desired services, and as what
}

// at is where the backend is.
func (k backendKey) at() netip.AddrPort { return netip.AddrPortFrom(k.address.Addr(), k.port) }

// record is the backend's record as long as it says no more than where it is.
func (k backendKey) record() maps.Backend {
	return maps.Backend{Address: k.address, Port: k.port, Protocol: uint8(k.protocol)}
}

func (b *backend) key() backendKey {
	return backendKey{b.record.Address, b.record.Port, compile.Protocol(b.record.Protocol)}
}

func (b *backend) at() netip.AddrPort { return b.key().at() }

// listing is what a desired service says of a backend.
type listing struct {
	backend                    *backend
	local, terminating, tunnel bool
}

// flags are those that the map's record should have, where packets are sent in tunnels or not. Services may disagree while
// their EndpointSlices change: a backend is local if one says so, and terminating, or reached by tunnel, if all do. It is
// gone when no table names it.
func (b *backend) flags(send bool) uint32 {
	was := b.record.Flags
	if !send {
		was &^= maps.BackendTunnel
	}
	if b.tables == 0 {
		return was | maps.BackendGone
	}
	if b.listed == 0 { // those whose tables name it are about to go, or not known yet
		return was &^ maps.BackendGone
	}
	flags := uint32(0)
	if b.local > 0 {
		flags |= maps.BackendLocal
	}
	if b.terminating == b.listed {
		flags |= maps.BackendTerminating
	}
	if send && b.tunnel == b.listed && b.local == 0 {
		flags |= maps.BackendTunnel
	}
	return flags
}

// count adds what a service says of its backends, or with -1 takes it back.
func (b *backend) count(said listing, by int32) {
	b.listed += by
	if said.local {
		b.local += by
	}
	if said.terminating {
		b.terminating += by
	}
	if said.tunnel {
		b.tunnel += by
	}
}

// list replaces what a service says of its backends; with nil it says nothing. It returns those that
// this may concern.
func (s *state) list(id compile.ID, want *compile.Service) []*backend {
	var concerned []*backend
	var now []listing
	if want != nil {
		now = s.listingsOf(*want)
	}
	for _, said := range now {
		said.backend.count(said, 1)
		concerned = append(concerned, said.backend)
	}
	for _, said := range s.listings[id] {
		said.backend.count(said, -1)
		concerned = append(concerned, said.backend)
		s.forget(said.backend)
	}
	if len(now) > 0 {
		s.listings[id] = now
	} else {
		delete(s.listings, id)
	}
	return concerned
}

// listingsOf returns what a service says of its backends, each once.
func (s *state) listingsOf(want compile.Service) []listing {
	said := make([]listing, 0, len(want.Inside))
	at := make(map[*backend]int, len(want.Inside))
	for _, side := range [][]compile.Backend{want.Inside, want.Outside} {
		for _, endpoint := range side {
			b := s.backend(backendKeyOf(endpoint.Address, want.ID.Protocol))
			i, twice := at[b]
			if !twice {
				i = len(said)
				at[b] = i
				said = append(said, listing{backend: b, terminating: true, tunnel: true})
			}
			said[i].local = said[i].local || endpoint.Local
			said[i].terminating = said[i].terminating && endpoint.Terminating
			said[i].tunnel = said[i].tunnel && endpoint.Tunnel
		}
	}
	return said
}

// backend returns the backend of a key, which may be new.
func (s *state) backend(key backendKey) *backend {
	b := s.backends[key]
	if b == nil {
		b = &backend{record: key.record()}
		s.backends[key] = b
	}
	return b
}

// all returns the backends, in any order.
func (s *state) all() iter.Seq[*backend] { return gomaps.Values(s.backends) }

// forget drops a backend that is neither listed nor in the maps.
func (s *state) forget(b *backend) {
	if b.listed == 0 && b.index == 0 && s.backends[b.key()] == b {
		delete(s.backends, b.key())
	}
}

// backendsOf returns the backends of a list, each once, and their weights: nil where those are equal.
func (s *state) backendsOf(list []compile.Backend, protocol compile.Protocol) (backends []*backend, weights []uint32) {
	backends, weights = make([]*backend, 0, len(list)), make([]uint32, 0, len(list))
	for i, endpoint := range list { // it is in order of the addresses
		if i > 0 && endpoint.Address == list[i-1].Address {
			continue
		}
		backends = append(backends, s.backend(backendKeyOf(endpoint.Address, protocol)))
		weights = append(weights, endpoint.Weight)
	}
	if slices.ContainsFunc(weights, func(weight uint32) bool { return weight != weights[0] }) {
		return backends, weights
	}
	return backends, nil
}

// slots returns what the table is made of: backend indices.
func (t *table) slots() []uint32 {
	if t.shape == shapeMaglev {
		return t.maglevSlots()
	}
	slots := make([]uint32, len(t.backends))
	for i, b := range t.backends {
		slots[i] = b.index
	}
	if t.shape == shapeMembers {
		slices.Sort(slots)
	}
	return slots
}

func (t *table) maglevSlots() []uint32 {
	slots := maps.Maglev(t.candidates(), t.fixed)
	for i, position := range slots {
		slots[i] = t.backends[position].index
	}
	return slots
}

// candidates returns the backends as Maglev takes them.
func (t *table) candidates() []maps.Candidate {
	candidates := make([]maps.Candidate, len(t.backends))
	for i, b := range t.backends {
		candidates[i] = maps.Candidate{Address: b.at(), Weight: 1}
		if t.weights != nil {
			candidates[i].Weight = t.weights[i]
		}
	}
	return candidates
}

// size returns how many slots the table takes.
func (t *table) size() uint32 {
	if t.shape == shapeMaglev {
		return maps.MaglevSize(t.candidates(), t.fixed)
	}
	return uint32(len(t.backends))
}

// is tells whether the table is the one that another would become. Of one that was read the weights are not known
// until it is compared with one that has the same slots.
func (t *table) is(want *table) bool {
	if t.damaged || t.shape != want.shape && len(want.backends) > 0 || !slices.Equal(t.backends, want.backends) {
		return false
	}
	if t.found == nil {
		return slices.Equal(t.weights, want.weights)
	}
	if want.weights == nil || !slices.Equal(t.found, want.slots()) {
		return false
	}
	t.weights, t.found = want.weights, nil
	return true
}

// nextBackendGeneration returns a generation unlike those before. It starts anywhere: those of cleared records are
// not remembered, and 0 says "unused".
func (s *state) nextBackendGeneration() uint32 {
	for s.generation == 0 {
		s.generation = rand.Uint32()
	}
	generation := s.generation
	s.generation++
	return generation
}

// nextRecordGeneration returns the generation that follows at an index: no frontend that names an earlier
// record there fits the new one.
func (s *state) nextRecordGeneration(index uint32) uint32 {
	s.generations[index]++
	if s.generations[index] == 0 {
		s.generations[index] = 1
	}
	return s.generations[index]
}
