package compile_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
	weirmaps "github.com/weir-lb/weir/maps"
)

// newWorld starts an agent for a node.
func newWorld(node, proxyName string, dsr bool) *world {
	w := &world{
		store: store.New(0), maps: &fakeMaps{services: map[compile.ID]compile.Service{}},
		addresses: &fakeAddresses{held: map[netip.Prefix]weirmaps.ClusterIPUse{}},
	}
	w.controller = controlplane.New(controlplane.Options{
		SNATPorts: compile.PortRange{First: 61000, Last: 65535},
		Store:     w.store, Applier: w.maps, Addresses: w.addresses, NodeName: node, ProxyName: proxyName, DSR: dsr, Log: zap.NewNop(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.controller.Run(ctx) })
	w.stop = func() { cancel(); running.Wait() }
	return w
}

// fakeMaps is an Applier that holds what it is given.
type fakeMaps struct {
	mu       sync.Mutex
	services map[compile.ID]compile.Service
}

func (f *fakeMaps) Sync(all []compile.Service) error {
	return f.Apply(all, nil)
}

func (f *fakeMaps) Apply(changed []compile.Service, removed []compile.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, service := range changed {
		f.services[service.ID] = service
	}
	for _, id := range removed {
		delete(f.services, id)
	}
	return nil
}

func (f *fakeMaps) Problems() []compile.Problem { return nil }

// all returns the services in order of their IDs.
func (f *fakeMaps) all() []compile.Service {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.services), func(a, b compile.Service) int { return a.ID.Compare(b.ID) })
}

// fakeAddresses holds what becomes of packets that no frontend is for.
type fakeAddresses struct {
	mu   sync.Mutex
	held map[netip.Prefix]weirmaps.ClusterIPUse
}

func (f *fakeAddresses) Sync(all map[netip.Prefix]weirmaps.ClusterIPUse) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = maps.Clone(all)
	return nil
}

func (f *fakeAddresses) Apply(changes map[netip.Prefix]weirmaps.ClusterIPUse) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for prefix, use := range changes {
		if f.held[prefix] = use; use == 0 {
			delete(f.held, prefix)
		}
	}
	return nil
}

// describe returns a line for each prefix, in their order.
func (f *fakeAddresses) describe() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	words := map[weirmaps.ClusterIPUse]string{
		weirmaps.ClusterIPUnallocated: "dropped", weirmaps.ClusterIPAllocated: "rejected", weirmaps.ClusterIPLeft: "left alone",
	}
	var out strings.Builder
	for _, prefix := range slices.SortedFunc(maps.Keys(f.held), netip.Prefix.Compare) {
		fmt.Fprintf(&out, "%-20s %s\n", prefix, words[f.held[prefix]])
	}
	return out.String()
}
