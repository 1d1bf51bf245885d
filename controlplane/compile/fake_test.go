package compile_test

import (
	"context"
	"maps"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// newWorld starts an agent for a node.
func newWorld(node, proxyName string) *world {
	w := &world{store: store.New(0), maps: &fakeMaps{services: map[compile.ID]compile.Service{}}}
	w.controller = controlplane.New(controlplane.Options{
		Store: w.store, Applier: w.maps, NodeName: node, ProxyName: proxyName, Log: zap.NewNop(),
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

func (f *fakeMaps) Sync(all []compile.Service) ([]compile.Problem, error) {
	return f.Apply(all, nil)
}

func (f *fakeMaps) Apply(changed []compile.Service, removed []compile.ID) ([]compile.Problem, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, service := range changed {
		f.services[service.ID] = service
	}
	for _, id := range removed {
		delete(f.services, id)
	}
	return nil, nil
}

// all returns the services in order of their IDs.
func (f *fakeMaps) all() []compile.Service {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.services), func(a, b compile.Service) int { return a.ID.Compare(b.ID) })
}
