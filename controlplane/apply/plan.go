package apply

import (
	"fmt"
	"slices"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// reserveShare is the part of the arena, 1/n, that is kept for services that change without growing: the new
// table stands beside the old one for a while.
const reserveShare = 16

// shortage is a map that is too small for a service.
type shortage struct {
	what    string // "backends"
	need    int
	room    int
	size    int
	leaving int    // how many more come free when the flows that name them end
	flag    string // of the agent, which makes it larger
	closed  bool   // it is served, but for its load balancer addresses
}

func (s *shortage) String() string {
	return fmt.Sprintf("needs %d more %s, and of %d only %d are free", s.need, s.what, s.size, s.room)
}

// problem words it for people.
func (s *shortage) problem(id compile.ID, served bool) compile.Problem {
	state := "is not served"
	switch {
	case s.closed:
		state = "is closed to clients of its LoadBalancer addresses"
	case served:
		state = "is served as it was before"
	}
	later := ""
	if s.leaving > 0 {
		later = fmt.Sprintf(" (%d more when the flows to what was removed have ended)", s.leaving)
	}
	return compile.Problem{
		Object: "Service " + id.Namespace + "/" + id.Name,
		Reason: "NoRoom",
		Message: fmt.Sprintf("%s %s: it %s%s; remove Services, or run `weir cleanup` and start the agent with a larger %s",
			id, state, s, later, s.flag),
	}
}

// plan is how a service gets what it wants.
type plan struct {
	service   *service
	record    *record // that its frontends shall lead to
	frontends map[maps.FrontendKey]maps.FrontendKind
	fresh     bool       // the record is new
	backends  []*backend // of the new tables: some are new, some come back
	newTables []*table
}

// plan finds the record that is what a service wants, or makes one. Where there is no room nothing has been
// taken.
func (s *state) plan(want compile.Service) (*plan, *shortage) {
	p := &plan{service: s.serviceOf(want.ID), frontends: frontendKinds(want)}
	if short := s.fitsFrontends(p); short != nil {
		return nil, short
	}
	next := s.recordOf(want, p.service)
	if p.record = p.service.equal(next); p.record != nil {
		return p, nil
	}
	p.record, p.fresh = next, true
	if short := s.take(p); short != nil {
		return nil, short
	}
	return p, nil
}

// serviceOf returns the service of an ID: as it is, as it was before it departed, or new.
func (s *state) serviceOf(id compile.ID) *service {
	if known := s.services[id]; known != nil {
		return known
	}
	if known := s.departed[id]; known != nil {
		return known
	}
	return &service{name: id}
}

// fitsFrontends checks that the frontends have room.
func (s *state) fitsFrontends(p *plan) *shortage {
	more := 0
	for key := range p.frontends {
		if _, there := s.frontends[key]; !there {
			more++
		}
	}
	if room := s.frontendLimit - len(s.frontends); more > room {
		return &shortage{what: "frontends", need: more, room: room, size: s.frontendLimit, flag: "--max-frontends"}
	}
	return nil
}

// recordOf returns the record that a service wants, with the tables of the current one where those are right.
func (s *state) recordOf(want compile.Service, of *service) *record {
	r := &record{service: of, value: maps.Service{
		InsideAlgorithm:  want.InsideAlgorithm,
		OutsideAlgorithm: want.OutsideAlgorithm,
		AffinityTimeout:  uint32(want.AffinityTimeout / time.Second),
		AffinityGroup:    want.ID.Group(),
	}}
	if want.NoEndpoints {
		r.value.Flags |= maps.ServiceNoEndpoints
	}
	if want.Restricted {
		r.value.Flags |= maps.ServiceSourceRanges
	}
	backends, weights := s.backendsOf(want.Inside, want.ID.Protocol)
	r.inside = s.tableOf(backends, weights, want.InsideAlgorithm)
	if !slices.Equal(want.Outside, want.Inside) { // most have one list for both
		backends, weights = s.backendsOf(want.Outside, want.ID.Protocol)
	}
	r.outside = s.tableOf(backends, weights, want.OutsideAlgorithm)
	if r.inside.weights != nil {
		r.value.Flags |= maps.ServiceInsideWeighted
	}
	if r.outside.weights != nil {
		r.value.Flags |= maps.ServiceOutsideWeighted
	}
	if want.AffinityTimeout > 0 {
		r.insideMembers = &table{shape: shapeMembers, backends: r.inside.backends}
		r.outsideMembers = &table{shape: shapeMembers, backends: r.outside.backends}
	}
	r.share(of.current)
	return r
}

// tableOf returns the table that backends make.
func (s *state) tableOf(backends []*backend, weights []uint32, algorithm maps.Algorithm) *table {
	return &table{shape: shapeOf(algorithm, weights != nil), fixed: s.fixed, backends: backends, weights: weights}
}

// shapeOf returns the shape of the table of an algorithm. A backend that weighs more has more of its slots.
func shapeOf(algorithm maps.Algorithm, weighted bool) shape {
	if weighted || algorithm == maps.AlgorithmMaglev {
		return shapeMaglev
	}
	return shapeList
}

// share takes tables of another record where they are the same, and one table for two lists of members that are.
func (r *record) share(other *record) {
	if other != nil {
		had := other.uses()
		for i, use := range r.uses() {
			if *use != nil && *had[i] != nil && (*had[i]).is(*use) {
				*use = *had[i]
			}
		}
	}
	switch {
	case r.insideMembers == nil || !r.outsideMembers.is(r.insideMembers):
	case r.outsideMembers.records > 0:
		r.insideMembers = r.outsideMembers
	default:
		r.outsideMembers = r.insideMembers
	}
}

// uses returns what a record uses tables for.
func (r *record) uses() [4]**table {
	return [4]**table{&r.inside, &r.outside, &r.insideMembers, &r.outsideMembers}
}

// tables returns the tables that a record names, once for each use.
func (r *record) tables() []*table {
	var tables []*table
	for _, use := range r.uses() {
		if *use != nil {
			tables = append(tables, *use)
		}
	}
	return tables
}

// equal returns a record of the service that is what is wanted, nil if there is none.
func (s *service) equal(want *record) *record {
	for _, have := range append([]*record{s.current}, s.others...) {
		if have != nil && have.value.Id == s.id && have.is(want) {
			return have
		}
	}
	return nil
}

// is tells whether a record says what another would.
func (r *record) is(want *record) bool {
	value := want.value
	value.Id, value.Generation = r.value.Id, r.value.Generation
	value.Inside, value.Outside = r.value.Inside, r.value.Outside
	value.InsideMembers, value.OutsideMembers = r.value.InsideMembers, r.value.OutsideMembers
	if value != r.value {
		return false
	}
	wanted := want.uses()
	for i, use := range r.uses() {
		if (*use == nil) != (*wanted[i] == nil) || *use != nil && *use != *wanted[i] && !(*use).is(*wanted[i]) {
			return false
		}
	}
	return true
}

// take gives a new record all that it needs, or nothing.
func (s *state) take(p *plan) *shortage {
	for _, t := range p.record.tables() {
		if t.records > 0 || slices.Contains(p.newTables, t) {
			continue
		}
		p.newTables = append(p.newTables, t)
		p.backends = append(p.backends, t.backends...)
	}
	p.backends = distinct(p.backends)
	if short := s.fits(p); short != nil {
		return short
	}
	if short := s.takeTables(p); short != nil {
		return short
	}
	for _, b := range p.backends {
		if b.index == 0 {
			s.takeBackend(b)
		}
	}
	s.takeRecord(p)
	return nil
}

// distinct returns each backend once.
func distinct(backends []*backend) []*backend {
	seen := make(map[*backend]struct{}, len(backends))
	once := backends[:0]
	for _, b := range backends {
		if _, twice := seen[b]; !twice {
			seen[b] = struct{}{}
			once = append(once, b)
		}
	}
	return once
}

// fits checks that there are indices enough.
func (s *state) fits(p *plan) *shortage {
	more := 0
	for _, b := range p.backends {
		if b.index == 0 {
			more++
		}
	}
	switch {
	case more > s.backendIndices.room():
		return &shortage{
			what: "backends", need: more, room: s.backendIndices.room(), size: s.backendIndices.size(),
			leaving: s.backendsLeaving(), flag: "--max-backends",
		}
	case p.service.id == 0 && s.ids.room() == 0:
		return &shortage{what: "services", need: 1, size: s.ids.size(), leaving: len(s.departed), flag: "--max-services"}
	case s.records.room() == 0:
		return &shortage{what: "service records", need: 1, size: s.records.size(), leaving: len(s.departed), flag: "--max-services"}
	}
	return nil
}

// takeTables gives the new tables their ranges. A service that grows leaves the reserve alone.
func (s *state) takeTables(p *plan) *shortage {
	need, had := uint32(0), uint32(0)
	for _, t := range p.newTables {
		need += maps.BlocksOf(t.size())
	}
	if current := p.service.current; current != nil {
		for _, t := range current.tables() {
			had += maps.BlocksOf(t.at.Count)
		}
	}
	use := s.arena.Use()
	short := &shortage{
		what: "slot blocks", need: int(need), room: int(use.Free), size: int(use.Blocks), flag: "--max-slot-blocks",
	}
	if need > had && need+use.Blocks/reserveShare > use.Free {
		short.room = max(0, int(use.Free)-int(use.Blocks/reserveShare))
		return short
	}
	for i, t := range p.newTables {
		at, err := s.arena.Alloc(t.size())
		if err != nil {
			for _, taken := range p.newTables[:i] {
				s.arena.Free(taken.at)
			}
			if need <= use.Free {
				short.what = "slot blocks in a row"
			}
			return short
		}
		t.at = at
	}
	return nil
}

// takeBackend gives a backend an index. It is gone until a table names it.
func (s *state) takeBackend(b *backend) {
	b.index = s.backendIndices.take()
	b.record.Generation, b.record.Flags = s.nextBackendGeneration(), maps.BackendGone
}

func (s *state) takeRecord(p *plan) {
	r := p.record
	if p.service.id == 0 {
		p.service.id = s.ids.take()
	}
	r.index = s.records.take()
	r.value.Id, r.value.Generation = p.service.id, s.nextRecordGeneration(r.index)
	r.value.Inside, r.value.Outside = r.inside.at, r.outside.at
	if r.insideMembers != nil {
		r.value.InsideMembers, r.value.OutsideMembers = r.insideMembers.at, r.outsideMembers.at
	}
	for _, t := range r.tables() {
		t.records++
		if t.records > 1 {
			continue
		}
		for _, b := range t.backends {
			b.tables++
			b.leaving = nil
		}
	}
}
