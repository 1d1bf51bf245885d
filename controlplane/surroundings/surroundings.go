// Package surroundings looks for what on the node keeps traffic of Services from going where the maps send it: forwarding
// that is off, a netfilter policy that drops, a process that has a NodePort. It changes nothing.
package surroundings

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
)

const (
	// lookEvery is the pause between two looks.
	lookEvery = 15 * time.Second
	// dropsCount is for how long a policy that has dropped is told of.
	dropsCount = 5 * time.Minute
)

// Options are what a Checker works with.
type Options struct {
	Services iter.Seq[compile.Service] // that the maps shall hold
	Pods     func() []compile.Pod      // of the node, as far as they are known
	Log      *zap.Logger
}

// Checker looks at the network namespace that it runs in.
type Checker struct {
	options Options
	drops   map[chain]drops

	mu       sync.Mutex
	problems []compile.Problem
}

// New returns a checker. It looks when it runs.
func New(options Options) *Checker {
	return &Checker{options: options, drops: map[chain]drops{}}
}

// Run looks again and again, until the context ends.
func (c *Checker) Run(ctx context.Context) error {
	for {
		problems, err := c.look(time.Now())
		if err != nil {
			c.options.Log.Warn("look at the node", zap.Error(err))
		}
		c.mu.Lock()
		c.problems = problems
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookEvery):
		}
	}
}

// Problems lists what the last look has found.
func (c *Checker) Problems() []compile.Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.problems)
}

// look looks once. What cannot be looked at is in the error.
func (c *Checker) look(now time.Time) (problems []compile.Problem, err error) {
	services := served(c.options.Services)
	if len(services.families) == 0 {
		return nil, nil
	}
	problems, errForwarding := forwarding(services.families)
	dropping, errPolicies := c.policies(now)
	taken, errPorts := nodePorts(services.nodePorts, c.options.Pods())
	return slices.Concat(problems, dropping, taken), errors.Join(errForwarding, errPolicies, errPorts)
}

// serving is what of the services the node may stand in the way of.
type serving struct {
	families  map[compile.Family]bool
	nodePorts map[port]compile.ID
}

// served looks at all services.
func served(services iter.Seq[compile.Service]) serving {
	s := serving{families: map[compile.Family]bool{}, nodePorts: map[port]compile.ID{}}
	for service := range services {
		s.families[service.ID.Family] = true
		for _, frontend := range service.Frontends {
			if frontend.Kind == compile.NodePort {
				s.nodePorts[port{service.ID.Protocol, frontend.Address.Port()}] = service.ID
			}
		}
	}
	return s
}
