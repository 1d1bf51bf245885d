// Package vips writes the map vips: which addresses clients send to, whatever the port, and which of them answer a
// ping (rule C09).
package vips

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Applier writes services to the maps; see controlplane.Applier.
type Applier interface {
	Sync(all []compile.Service) error
	Apply(changed []compile.Service, removed []compile.ID) error
	Problems() []compile.Problem
}

// Follower is an Applier that has another one write, and then writes the addresses of what that has been given. It is
// the only writer of its map, and safe for concurrent use.
type Follower struct {
	applier Applier
	vips    *ebpf.Map
	answers bool
	left    atomic.Int64 // addresses for which there was no room

	mu       sync.Mutex
	services map[compile.ID][]entry
	wanted   map[netip.Addr]count
	held     map[netip.Addr]uint32   // what the map holds
	full     map[netip.Addr]struct{} // for which there was no room
}

// count is how many Service ports have an address, and how many of them answer a ping from either side.
type count struct{ ports, inside, outside int }

// entry is what one Service port says of an address.
type entry struct {
	address netip.Addr
	count   count
}

func (c count) plus(other count, by int) count {
	return count{c.ports + by*other.ports, c.inside + by*other.inside, c.outside + by*other.outside}
}

// flags are what the map says of an address; false: nothing.
func (c count) flags() (flags uint32, ok bool) {
	if c.inside > 0 {
		flags |= maps.VIPAnswersInside
	}
	if c.outside > 0 {
		flags |= maps.VIPAnswersOutside
	}
	return flags, c.ports > 0
}

// Follow returns a follower of an applier. Without answers no address answers a ping.
func Follow(applier Applier, set *maps.Set, answers bool) *Follower {
	return &Follower{applier: applier, vips: set.VIPs, answers: answers}
}

// Sync is of Applier. Where the map holds what it should, nothing is written.
func (f *Follower) Sync(all []compile.Service) error {
	if err := f.applier.Sync(all); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(); err != nil {
		return err
	}
	touched := map[netip.Addr]struct{}{}
	for address := range f.held {
		touched[address] = struct{}{}
	}
	for _, service := range all {
		f.replace(service.ID, f.countsOf(service), touched)
	}
	return f.write(touched)
}

// Apply is of Applier.
func (f *Follower) Apply(changed []compile.Service, removed []compile.ID) error {
	if err := f.applier.Apply(changed, removed); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil {
		return errors.New("the map vips is to be written anew")
	}
	touched := map[netip.Addr]struct{}{}
	for _, id := range removed {
		f.replace(id, nil, touched)
	}
	for _, service := range changed {
		f.replace(service.ID, f.countsOf(service), touched)
	}
	return f.write(touched)
}

// Problems is of Applier.
func (f *Follower) Problems() []compile.Problem {
	problems := f.applier.Problems()
	if left := f.left.Load(); left > 0 {
		problems = append(problems, compile.Problem{
			Object: "Map vips", Reason: "NoRoom",
			Message: fmt.Sprintf("%d addresses of Services have no room: they answer no ping, and fragments to them that come out of order are left alone; raise --max-frontends", left),
		})
	}
	return problems
}

// read reads back what the map holds, and forgets what was wanted.
func (f *Follower) read() error {
	held := map[netip.Addr]uint32{}
	err := maps.Each(f.vips, func(address maps.Address, flags uint32) bool {
		held[address.Addr()] = flags
		return true
	})
	if err != nil {
		return err
	}
	f.services, f.wanted = map[compile.ID][]entry{}, map[netip.Addr]count{}
	f.held, f.full = held, map[netip.Addr]struct{}{}
	return nil
}

// countsOf returns the addresses of a Service port, each once. NodePorts have none of their own; a load balancer address that is
// not for everybody answers nobody's ping.
func (f *Follower) countsOf(service compile.Service) []entry {
	var counts []entry
	for _, frontend := range service.Frontends {
		if frontend.Kind == compile.NodePort {
			continue
		}
		c := count{ports: 1}
		if f.answers && !(service.Restricted && frontend.Kind == compile.LoadBalancer) {
			c.inside, c.outside = min(len(service.Inside), 1), min(len(service.Outside), 1)
		}
		address := frontend.Address.Addr()
		counts = append(slices.DeleteFunc(counts, func(e entry) bool { return e.address == address }), entry{address, c})
	}
	return counts
}

// replace makes the addresses of a Service port others.
func (f *Follower) replace(id compile.ID, counts []entry, touched map[netip.Addr]struct{}) {
	add := func(counts []entry, by int) {
		for _, e := range counts {
			f.wanted[e.address] = f.wanted[e.address].plus(e.count, by)
			touched[e.address] = struct{}{}
		}
	}
	add(counts, 1)
	add(f.services[id], -1)
	f.services[id] = counts
	if len(counts) == 0 {
		delete(f.services, id)
	}
}

// write brings the map up to date where it was touched. After a failure only the map knows how far it got.
func (f *Follower) write(touched map[netip.Addr]struct{}) error {
	for address := range touched {
		if err := f.writeOne(address); err != nil {
			f.held = nil
			return err
		}
	}
	f.left.Store(int64(len(f.full)))
	return nil
}

func (f *Follower) writeOne(address netip.Addr) error {
	key := maps.AddressOf(address)
	flags, wanted := f.wanted[address].flags()
	was, held := f.held[address]
	delete(f.full, address)
	if !wanted {
		delete(f.wanted, address)
		delete(f.held, address)
		if err := f.vips.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete %s from map vips: %w", address, err)
		}
		return nil
	}
	if held && was == flags {
		return nil
	}
	err := f.vips.Put(&key, flags)
	if errors.Is(err, syscall.E2BIG) {
		f.full[address] = struct{}{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("write %s to map vips: %w", address, err)
	}
	f.held[address] = flags
	return nil
}
