package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/weir-lb/weir/controlplane/status"
)

// runAgent is what `weir agent` does. It returns nil when the context ends, and leaves everything in place.
func runAgent(ctx context.Context, config agentConfig) error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	if err := checkMachine(release, config); err != nil {
		return err
	}
	if config.nodeName, err = nodeNameOr(config.nodeName); err != nil {
		return err
	}
	if err := ensureBPFFS(config.bpffs); err != nil {
		return err
	}
	lock, err := lockPins(pinsDir(config.bpffs))
	if err != nil {
		return err
	}
	defer lock.Release()
	first := status.Snapshot{
		PID: os.Getpid(), Version: version, Node: config.nodeName, Source: config.source.String(),
		BPFFS: config.bpffs, Kernel: release, Started: time.Now(), SNATPorts: config.snatPorts,
	}
	// What a predecessor has said of itself is not true of this agent.
	if err := status.Write(pinsDir(config.bpffs), first); err != nil {
		return fmt.Errorf("write the status file: %w", err)
	}
	board := status.NewBoard(pinsDir(config.bpffs), first)
	d, err := newDaemon(config, board)
	if err != nil {
		return errors.Join(err, board.Fail(err))
	}
	return errors.Join(d.run(ctx), d.close())
}

// checkMachine tells what stands in the way of an agent, before anything is changed.
func checkMachine(release string, config agentConfig) error {
	if err := checkKernel(release); err != nil {
		return err
	}
	local, err := localPortRange()
	if err != nil {
		return err
	}
	return checkSNATPorts(config.snatPorts, local)
}

// lockPins takes the pins, or says who has them.
func lockPins(pins string) (*status.Lock, error) {
	lock, err := status.Take(pins)
	if !errors.Is(err, status.ErrRunning) {
		return lock, err
	}
	holder := "an agent"
	if snapshot, err := status.Read(pins); err == nil {
		holder = fmt.Sprintf("the agent with pid %d", snapshot.PID)
	}
	return nil, fmt.Errorf("%s has the pins in %s: stop it first, or name another bpffs with --bpffs", holder, pins)
}
