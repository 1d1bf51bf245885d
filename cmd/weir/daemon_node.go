package main

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/nodecheck"
)

const (
	// lookAtNodeEvery is the least pause between two looks at what of the node is in the way.
	lookAtNodeEvery = 10 * time.Second
	// lookAtNodeShare is how many times as long as a look took the pause is.
	lookAtNodeShare = 100
)

// lookAtNode looks for what of the node keeps Service traffic from getting where it is to go.
func (d *daemon) lookAtNode(ctx context.Context) error {
	for {
		begin := time.Now()
		problems, err := nodecheck.Look(d.controller.Services())
		if err != nil {
			d.log.Warn("look at the node", zap.Error(err))
		}
		if before := d.obstacles.Swap(&problems); before == nil || !slices.Equal(*before, problems) {
			wake(d.changed)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(lookAtNodeEvery, lookAtNodeShare*time.Since(begin))):
		}
	}
}

// nodeProblems lists what of the node is in the way.
func (d *daemon) nodeProblems() []compile.Problem {
	if problems := d.obstacles.Load(); problems != nil {
		return *problems
	}
	return nil
}
