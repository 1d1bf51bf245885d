// Package controlplane makes the maps hold what the Kubernetes objects ask for: it takes what changed in
// the store, compiles it, settles who owns which frontend, and hands the difference to the writer of the
// maps.
package controlplane

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
	weirmaps "github.com/weir-lb/weir/maps"
)

// Applier writes services to the maps. No two services that it is given have a frontend in common, and each
// has at least one. A frontend may move from one service to another within one call: it belongs to the one
// whose desired state has it, whichever the order.
//
// An error says that the maps may not hold what they should; the controller then calls Sync until it succeeds.
// Lists and services are not modified by either side afterwards.
type Applier interface {
	// Sync makes the maps hold these services and no others. Where they do already, nothing is written.
	Sync(all []compile.Service) error

	// Apply writes changed services and takes out removed ones. Either may already be as they should.
	Apply(changed []compile.Service, removed []compile.ID) error

	// Problems are all that stand now: services left out for want of room, say, until there is some again, by a later
	// call or without one. It may be called at any time, and must be quick.
	Problems() []compile.Problem
}

// Addresses writes what becomes of packets to addresses of Services that no frontend is for (rule C05). After an error
// the controller calls Sync until it succeeds.
type Addresses interface {
	// Sync makes the map hold these and no others.
	Sync(all map[netip.Prefix]weirmaps.ClusterIPUse) error

	// Apply writes changes; 0: nothing is to be there.
	Apply(changes map[netip.Prefix]weirmaps.ClusterIPUse) error
}

// Options are what a Controller works with.
type Options struct {
	Store     *store.Store
	Applier   Applier
	Addresses Addresses // may be nil: nothing is written then
	NodeName  string    // of the node whose endpoints are local, and whose zone counts
	ProxyName string    // see compile.Input
	SNATPorts compile.PortRange
	DSR       bool // endpoints of other nodes may be reached by tunnel, where their Nodes say so
	Log       *zap.Logger

	// Problems are asked for what other parts know to be wrong: the sources, the devices.
	Problems []func() []compile.Problem

	// Applied is told of each changed object once the maps hold it: Services by namespace and name, Nodes
	// by name. It is called by Run and must be quick. May be nil.
	Applied func(object store.Key, arrived, applied time.Time)

	// Written is told what each write of the maps took, also of those that failed. As Applied.
	Written func(took time.Duration, all bool, err error)

	// Departed is called by Run when the maps have been brought up to date at the start, and then when they say of a
	// backend that it has left a service whose flows end then. It must be quick. May be nil.
	Departed func()
}

// Controller carries changes from the store to the maps.
type Controller struct {
	options Options

	// Owned by Run.
	full    bool // Sync is due: at the start, and after a failure
	retryAt time.Time
	backoff wait.Backoff

	mu             sync.Mutex
	desired        *desired
	pending        map[compile.ID]struct{}
	taken, applied store.Changes           // that the desired state and the maps have
	arrived        map[store.Key]time.Time // of the oldest change of an object that is not in the maps
	status         Status                  // but for what snapshot fills in
}

// New returns a controller. Nothing happens until Run.
func New(options Options) *Controller {
	desired := newDesired(options.NodeName, options.ProxyName, options.Store.Get)
	desired.snatPorts, desired.dsr = options.SNATPorts, options.DSR
	return &Controller{
		options: options,
		full:    true,
		backoff: freshBackoff(),
		desired: desired,
		pending: map[compile.ID]struct{}{},
		arrived: map[store.Key]time.Time{},
	}
}

// freshBackoff is how long failed writes wait for their next try, unless a new change brings it forward.
func freshBackoff() wait.Backoff {
	return wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 20, Cap: 30 * time.Second}
}

// Run works until the context ends. It writes nothing before the store is synced (rule S09).
func (c *Controller) Run(ctx context.Context) {
	for ctx.Err() == nil {
		work, more := c.next(ctx)
		if more {
			c.take(work)
		}
		if ctx.Err() == nil {
			c.write()
		}
	}
}

// next waits for work, or until a failed write is to be tried again.
func (c *Controller) next(ctx context.Context) (work store.Work, more bool) {
	if !c.retryAt.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, c.retryAt)
		defer cancel()
	}
	work, err := c.options.Store.Next(ctx)
	return work, err == nil
}

// take brings the desired state up to date.
func (c *Controller) take(work store.Work) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = work.Changes
	for _, item := range work.Items {
		c.note(item.Key, item.Arrived)
	}
	items := work.Items
	if !work.NodesArrived.IsZero() {
		c.note(store.Key{Name: c.options.NodeName}, work.NodesArrived)
		all, some := c.desired.setNodes(work.Nodes)
		switch {
		case all:
			items = everything(items, c.options.Store.All())
		case len(some) > 0:
			items = append(items, c.options.Store.OnNodes(some)...)
		}
	}
	if work.RangesChanged {
		c.desired.setRanges(work.Ranges)
	}
	for _, id := range c.desired.update(items) {
		c.pending[id] = struct{}{}
	}
}

// everything returns all Services, and the items of those that are gone.
func everything(items, all []store.Item) []store.Item {
	for _, item := range items {
		if item.Service == nil {
			all = append(all, item)
		}
	}
	return all
}

// note remembers when the oldest change of an object arrived that is not in the maps.
func (c *Controller) note(object store.Key, arrived time.Time) {
	if old, waiting := c.arrived[object]; !waiting || arrived.Before(old) {
		c.arrived[object] = arrived
	}
}

// write hands what changed to the applier, or everything if it cannot be known what the maps hold.
func (c *Controller) write() {
	changed, removed := c.difference()
	start := time.Now()
	var err error
	switch {
	case c.full:
		err = c.options.Applier.Sync(changed)
	case len(changed)+len(removed) > 0:
		err = c.options.Applier.Apply(changed, removed)
	}
	if err == nil {
		err = c.writeAddresses()
	}
	if c.options.Written != nil {
		c.options.Written(time.Since(start), c.full, err)
	}
	if err != nil {
		c.failed(err)
		return
	}
	c.options.Log.Debug("services written", zap.Bool("all", c.full), zap.Int("changed", len(changed)),
		zap.Int("removed", len(removed)), zap.Duration("took", time.Since(start)))
	c.succeeded()
}

// writeAddresses follows the frontends: to those of a new Service packets are admitted before the others are refused.
func (c *Controller) writeAddresses() error {
	if c.options.Addresses == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	addresses := c.desired.addresses
	var err error
	if c.full {
		err = c.options.Addresses.Sync(addresses.All())
	} else if changes := addresses.Changes(); len(changes) > 0 {
		err = c.options.Addresses.Apply(changes)
	}
	if err == nil {
		addresses.Forget()
	}
	return err
}

// difference returns what to write: all services if that is due, else those that changed.
func (c *Controller) difference() (changed []compile.Service, removed []compile.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.full {
		return c.desired.all(), nil
	}
	for _, id := range slices.SortedFunc(maps.Keys(c.pending), compile.ID.Compare) {
		if service, wanted := c.desired.services[id]; wanted {
			changed = append(changed, *service)
		} else {
			removed = append(removed, id)
		}
	}
	return changed, removed
}

// failed arranges for another try.
func (c *Controller) failed(err error) {
	c.full = true
	delay := c.backoff.Step()
	c.retryAt = time.Now().Add(delay)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Failures++
	c.status.LastError, c.status.LastErrorAt = err.Error(), time.Now()
	c.options.Log.Error("write services", zap.Error(err), zap.Int("failures", c.status.Failures), zap.Duration("retry", delay))
}

// succeeded records that the maps hold all that is desired, and tells who wants to know.
func (c *Controller) succeeded() {
	c.full, c.retryAt, c.backoff = false, time.Time{}, freshBackoff()
	now := time.Now()
	c.mu.Lock()
	departed := c.desired.departed || !c.status.Synced
	c.desired.departed = false
	arrived := c.arrived
	c.applied = c.taken
	c.arrived, c.pending = map[store.Key]time.Time{}, map[compile.ID]struct{}{}
	c.status.Synced, c.status.Failures, c.status.LastApplied = true, 0, now
	if oldest := oldestOf(arrived, time.Time{}); !oldest.IsZero() {
		c.status.LastLatency = now.Sub(oldest)
	}
	c.mu.Unlock()

	if departed && c.options.Departed != nil {
		c.options.Departed()
	}
	if c.options.Applied == nil {
		return
	}
	for object, at := range arrived {
		c.options.Applied(object, at, now)
	}
}

// oldestOf returns the earliest of many times and another, which does not count if it is zero.
func oldestOf(times map[store.Key]time.Time, oldest time.Time) time.Time {
	for _, t := range times {
		if oldest.IsZero() || t.Before(oldest) {
			oldest = t
		}
	}
	return oldest
}
