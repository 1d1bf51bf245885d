// Package claims decides what one Service can only know by looking at the others: who owns a frontend that
// several claim, and whether an endpoint is really some Service's frontend. Both are answered
// incrementally: a change costs what it touches, however many Services there are.
package claims

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weir-lb/weir/controlplane/compile"
)

// frontend is what can have one owner only: a key of the frontends map.
type frontend struct {
	address  netip.AddrPort
	protocol compile.Protocol
}

// Frontends knows which service owns which frontend. The oldest claimant does (by creation time, then
// namespace and name); the others go without it until the owner lets go. Not safe for concurrent use.
type Frontends struct {
	services  map[compile.ID]*compile.Service
	claimants map[frontend][]compile.ID // the owner first
	contested map[frontend]struct{}     // those with more than one claimant
}

// NewFrontends returns an empty register.
func NewFrontends() *Frontends {
	return &Frontends{
		services:  map[compile.ID]*compile.Service{},
		claimants: map[frontend][]compile.ID{},
		contested: map[frontend]struct{}{},
	}
}

// Set registers a service, or replaces what is registered under its ID. Nobody modifies it afterwards. It returns the other
// services that own more or fewer frontends than before.
func (f *Frontends) Set(service *compile.Service) (affected []compile.ID) {
	before := f.owners(service.ID, service.Frontends)
	f.forget(service.ID)
	f.services[service.ID] = service
	for _, claimed := range service.Frontends {
		f.claim(frontendOf(service.ID, claimed), service)
	}
	return f.changed(service.ID, before)
}

// Delete forgets a service. It returns the other services that own more frontends than before.
func (f *Frontends) Delete(id compile.ID) (affected []compile.ID) {
	before := f.owners(id, nil)
	f.forget(id)
	return f.changed(id, before)
}

// Get returns a service with the frontends that it owns, which may be none, or nil if there is no such service. One that has
// lost none is the one that was registered.
func (f *Frontends) Get(id compile.ID) *compile.Service {
	service := f.services[id]
	if service == nil {
		return nil
	}
	lost := func(claimed compile.Frontend) bool { return f.claimants[frontendOf(id, claimed)][0] != id }
	if !slices.ContainsFunc(service.Frontends, lost) {
		return service
	}
	owning := *service
	owning.Frontends = slices.DeleteFunc(slices.Clone(service.Frontends), lost)
	return &owning
}

// Owner returns which service has a frontend.
func (f *Frontends) Owner(address netip.AddrPort, protocol compile.Protocol) (owner compile.ID, owned bool) {
	claimants := f.claimants[frontend{address, protocol}]
	if len(claimants) == 0 {
		return owner, false
	}
	return claimants[0], true
}

// Problems lists the frontends that are withheld from somebody, in a stable order.
func (f *Frontends) Problems() []compile.Problem {
	var problems []compile.Problem
	for contested := range f.contested {
		claimants := f.claimants[contested]
		for _, loser := range claimants[1:] {
			problems = append(problems, withheld(contested, f.kind(contested, loser), claimants[0], loser))
		}
	}
	slices.SortFunc(problems, func(a, b compile.Problem) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Message, b.Message))
	})
	return problems
}

// kind returns what makes a service claim a frontend.
func (f *Frontends) kind(of frontend, by compile.ID) compile.FrontendKind {
	for _, claimed := range f.claimed(by) {
		if claimed.Address == of.address {
			return claimed.Kind
		}
	}
	return ""
}

// withheld says that a service does without a frontend.
func withheld(of frontend, kind compile.FrontendKind, owner, loser compile.ID) compile.Problem {
	where := fmt.Sprintf("%s %s/%s", kind, of.address, of.protocol)
	if kind == compile.NodePort {
		where = fmt.Sprintf("NodePort %d/%s", of.address.Port(), of.protocol)
	}
	return compile.Problem{
		Object:  "Service " + loser.Namespace + "/" + loser.Name,
		Reason:  "FrontendTaken",
		Message: fmt.Sprintf("%s belongs to Service %s/%s, which came first: change one of them", where, owner.Namespace, owner.Name),
	}
}

// claimed returns the frontends that a service is registered with.
func (f *Frontends) claimed(by compile.ID) []compile.Frontend {
	if service := f.services[by]; service != nil {
		return service.Frontends
	}
	return nil
}

func frontendOf(id compile.ID, claimed compile.Frontend) frontend {
	return frontend{claimed.Address, id.Protocol}
}

// owners returns the present owner of each frontend that a service has or is to have.
func (f *Frontends) owners(id compile.ID, coming []compile.Frontend) map[frontend]compile.ID {
	owners := map[frontend]compile.ID{}
	for _, list := range [][]compile.Frontend{f.claimed(id), coming} {
		for _, claimed := range list {
			key := frontendOf(id, claimed)
			if claimants := f.claimants[key]; len(claimants) > 0 {
				owners[key] = claimants[0]
			}
		}
	}
	return owners
}

// changed compares the owners of before with those of now, and returns the services other than id that
// won or lost.
func (f *Frontends) changed(id compile.ID, before map[frontend]compile.ID) (affected []compile.ID) {
	for key, old := range before {
		claimants := f.claimants[key]
		if len(claimants) > 0 && claimants[0] == old {
			continue
		}
		if old != id {
			affected = append(affected, old)
		}
		if len(claimants) > 0 && claimants[0] != id {
			affected = append(affected, claimants[0])
		}
	}
	slices.SortFunc(affected, compile.ID.Compare)
	return slices.Compact(affected)
}

// claim enters a service, which is registered, among the claimants of a frontend.
func (f *Frontends) claim(key frontend, service *compile.Service) {
	claimants := f.claimants[key]
	at, found := slices.BinarySearchFunc(claimants, service, func(id compile.ID, s *compile.Service) int {
		return age(f.services[id], s)
	})
	if found {
		return // claimed twice by the same service
	}
	claimants = slices.Insert(claimants, at, service.ID)
	f.claimants[key] = claimants
	if len(claimants) > 1 {
		f.contested[key] = struct{}{}
	}
}

// forget takes a service off the register.
func (f *Frontends) forget(id compile.ID) {
	for _, claimed := range f.claimed(id) {
		key := frontendOf(id, claimed)
		claimants := slices.DeleteFunc(f.claimants[key], func(other compile.ID) bool { return other == id })
		if len(claimants) <= 1 {
			delete(f.contested, key)
		}
		if len(claimants) == 0 {
			delete(f.claimants, key)
		} else {
			f.claimants[key] = claimants
		}
	}
	delete(f.services, id)
}

// age orders services, the oldest first.
func age(a, b *compile.Service) int {
	return cmp.Or(a.Created.Compare(b.Created), a.ID.Compare(b.ID))
}
