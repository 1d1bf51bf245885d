// Package tally keeps what all services come to, taken together. It is kept up to date service by service: a change
// costs what it changes, however many services there are.
package tally

import (
	"slices"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Tally is not safe for concurrent use.
type Tally struct {
	frontends int
	ending    int // services of TCP whose flows end with their endpoint

	// By address, which has no pointer in it: there may be a million, and the garbage collector need not look.
	elsewhere map[maps.Address]int32 // how often services name a backend there that is not on this node
	before    map[maps.Address]bool  // whether there was one when Moves was last called, where that may have changed

	clusterIPs bool // may be others since Moves was last called
}

// Moves are what has changed of where things are.
type Moves struct {
	Backends   map[maps.Address]bool // not on this node: true is one that came, false one that left; it is the caller's
	ClusterIPs bool                  // others may have come or gone
}

// New returns an empty tally.
func New() *Tally {
	return &Tally{elsewhere: map[maps.Address]int32{}, before: map[maps.Address]bool{}}
}

// Replace has a service be another. The zero one is none.
func (t *Tally) Replace(was, is compile.Service) {
	t.add(was, -1)
	t.add(is, 1)
	t.clusterIPs = t.clusterIPs || !slices.Equal(was.Frontends, is.Frontends)
}

func (t *Tally) add(service compile.Service, by int) {
	t.frontends += by * len(service.Frontends)
	if service.RemovedEndpoints.End {
		t.ending += by
	}
	for _, side := range [][]compile.Backend{service.Inside, service.Outside} {
		for _, backend := range side {
			if !backend.Local {
				t.addBackend(maps.AddressOf(backend.Address.Addr()), int32(by))
			}
		}
	}
}

func (t *Tally) addBackend(address maps.Address, by int32) {
	count := t.elsewhere[address]
	if _, noted := t.before[address]; !noted {
		t.before[address] = count > 0
	}
	if count += by; count == 0 {
		delete(t.elsewhere, address)
		return
	}
	t.elsewhere[address] = count
}

// Frontends is how many there are.
func (t *Tally) Frontends() int { return t.frontends }

// EndsTCP tells whether there is a service whose TCP connections end with their endpoint.
func (t *Tally) EndsTCP() bool { return t.ending > 0 }

// Moves returns what has changed since it was last called.
func (t *Tally) Moves() Moves {
	moves := Moves{Backends: t.before, ClusterIPs: t.clusterIPs}
	for address, was := range moves.Backends {
		if is := t.elsewhere[address] > 0; is != was {
			moves.Backends[address] = is
		} else {
			delete(moves.Backends, address)
		}
	}
	t.before, t.clusterIPs = map[maps.Address]bool{}, false
	return moves
}
