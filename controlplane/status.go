package controlplane

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
	"github.com/weir-lb/weir/controlplane/tally"
)

// Status is how far the maps are behind the objects, and what is wrong with those.
type Status struct {
	Synced    bool `json:"synced"`    // the maps have held all of a complete listing
	Services  int  `json:"services"`  // that the maps shall hold
	Frontends int  `json:"frontends"` // that the maps shall hold
	Pending   int  `json:"pending"`   // services that differ from what the maps were last known to hold

	Lag         time.Duration `json:"lag"`         // age of the oldest change that is not in the maps yet; 0 if all are
	LastLatency time.Duration `json:"lastLatency"` // what the last write took, from the arrival of its oldest change
	LastApplied time.Time     `json:"lastApplied"` // when the maps were last written, or found right

	Failures    int       `json:"failures"`            // writes that failed in a row
	LastError   string    `json:"lastError,omitempty"` // of the last failed write, kept after it was made good
	LastErrorAt time.Time `json:"lastErrorAt"`

	Problems []compile.Problem `json:"problems,omitempty"` // in order of the objects
}

// Status returns a snapshot. It may be called at any time, from anywhere.
func (c *Controller) Status() Status {
	status := c.snapshot()
	status.Problems = append(status.Problems, c.options.Applier.Problems()...)
	status.Problems = append(status.Problems, c.options.Store.Problems()...)
	for _, problems := range c.options.Problems {
		status.Problems = append(status.Problems, problems()...)
	}
	slices.SortFunc(status.Problems, func(a, b compile.Problem) int {
		return cmp.Or(
			strings.Compare(a.Object, b.Object),
			strings.Compare(a.Reason, b.Reason),
			strings.Compare(a.Message, b.Message),
		)
	})
	status.Problems = slices.Compact(status.Problems)
	return status
}

// Progress is what Status says but for the problems: it is cheap.
func (c *Controller) Progress() Status {
	waiting, _ := c.options.Store.Oldest()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.behind(waiting)
}

// Changes returns how many changes of objects have been taken in, and how many of them are not in the maps.
func (c *Controller) Changes() (all, waiting store.Changes) {
	c.mu.Lock()
	applied := c.applied
	c.mu.Unlock()
	all = c.options.Store.Changes()
	return all, all.Less(applied)
}

// behind returns how far the maps are behind. Waiting is the oldest change that has not been taken.
func (c *Controller) behind(waiting time.Time) Status {
	status := c.status
	status.Pending = len(c.pending)
	if oldest := oldestOf(c.arrived, waiting); !oldest.IsZero() {
		status.Lag = time.Since(oldest)
	}
	return status
}

// snapshot returns what the controller itself knows.
func (c *Controller) snapshot() Status {
	waiting, _ := c.options.Store.Oldest() // before the lock: work that is taken meanwhile shows up below
	c.mu.Lock()
	defer c.mu.Unlock()
	status := c.behind(waiting)
	status.Services = len(c.desired.services)
	status.Frontends = c.desired.tally.Frontends()
	status.Problems = c.desired.problems()
	return status
}

// HealthChecks returns the health checks that Services ask for.
func (c *Controller) HealthChecks() map[store.Key]compile.HealthCheck {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.desired.checks)
}

// Each goes through what the maps shall hold, in any order. Changes wait meanwhile: it must be quick, and is not for what
// is to be known after each change.
func (c *Controller) Each(yield func(compile.Service) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, service := range c.desired.services {
		if !yield(*service) {
			return
		}
	}
}

// Find returns the service that has a frontend.
func (c *Controller) Find(address netip.AddrPort, protocol compile.Protocol) (service compile.Service, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.desired.find(address, protocol)
}

// EndsTCP tells whether there is a service whose TCP connections end with their endpoint.
func (c *Controller) EndsTCP() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.desired.tally.EndsTCP()
}

// Tunnels returns what the Nodes say of tunnels. It is not to be modified.
func (c *Controller) Tunnels() compile.Tunnels {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.desired.tunnels
}

// ClusterIP returns the Service whose ClusterIP an address is.
func (c *Controller) ClusterIP(address netip.Addr) (service store.Key, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.desired.vips.ClusterIP(address)
}

// Moves returns what has changed since it was last called of where backends and ClusterIPs are.
func (c *Controller) Moves() tally.Moves {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.desired.tally.Moves()
}
