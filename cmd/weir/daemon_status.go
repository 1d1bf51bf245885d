package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

const (
	// tellPause is the shortest time between two looks at what there is to tell.
	tellPause = 50 * time.Millisecond
	// tellAtLeast is the longest: a lag that grows is not announced.
	tellAtLeast = time.Second
)

// wake leaves a token, unless there is one already.
func wake(tokens chan struct{}) {
	select {
	case tokens <- struct{}{}:
	default:
	}
}

// tell keeps the status file until the context ends.
func (d *daemon) tell(ctx context.Context) error {
	var keeper sync.WaitGroup
	defer keeper.Wait()
	keeper.Go(func() {
		d.board.Keep(ctx, func(err error) { d.log.Warn("write the status file", zap.Error(err)) })
	})
	ready := d.devices.Ready()
	for {
		d.post()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(tellPause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
			ready = nil
		case <-d.changed:
		case <-time.After(tellAtLeast):
		}
	}
}

// post brings the board up to date.
func (d *daemon) post() {
	now, state := time.Now(), d.controller.Status()
	if d.events != nil {
		d.events.Report(state.Problems, now)
	}
	failure := d.source.Failure()
	forwarding := d.forwarding()
	attachments, changes, writes := d.attacher.Attachments(), d.attacher.Changes(), d.applier.Writes()
	d.board.Change(func(s *status.Snapshot) {
		s.Sync = syncOf(state, now)
		s.Sync.Synced = s.Sync.Synced && d.devicesReady()
		s.Sync.Writes = writes
		s.SourceFailure = failure
		s.Changes = status.Changes(changes)
		s.Problems = problemsOf(state.Problems)
		s.Attachments = attachmentsOf(attachments)
		s.Foreign = foreignOf(d.foreign.Found())
		s.Forwarding = forwarding
		if d.closer != nil {
			s.Sockets.Closed = d.closer.Closed()
		}
	})
}

// devicesReady tells whether every device that was there at the start has its programs: before, nothing is served.
func (d *daemon) devicesReady() bool {
	select {
	case <-d.devices.Ready():
		return true
	default:
		return false
	}
}

// syncOf puts the controller's status into the words of the status file.
func syncOf(state controlplane.Status, now time.Time) status.Sync {
	sync := status.Sync{
		Synced: state.Synced, Last: state.LastApplied, Latency: state.LastLatency,
		Failures: state.Failures, Services: state.Services, Frontends: state.Frontends,
	}
	if state.Lag > 0 {
		sync.Waiting = now.Add(-state.Lag)
	}
	return sync
}

// problemsOf puts problems into the words of the status file.
func problemsOf(problems []compile.Problem) []status.Problem {
	told := make([]status.Problem, len(problems))
	for i, p := range problems {
		told[i] = status.Problem{Object: p.Object, Reason: p.Reason, Message: p.Message}
	}
	return told
}

// attachmentsOf puts attachments into the words of the status file.
func attachmentsOf(attachments []loader.Attachment) []status.Attachment {
	told := make([]status.Attachment, len(attachments))
	for i, a := range attachments {
		told[i] = status.Attachment{
			Device: a.Device, Ifindex: a.Ifindex, Edge: viewEdgeKind(a.Edge),
			Hooks: make([]string, len(a.Hooks)), Foreign: a.Foreign, Reasons: a.Reasons,
		}
		for j, hook := range a.Hooks {
			told[i].Hooks[j] = fmt.Sprintf("%s %s", hook.How, hook.Program)
		}
	}
	return told
}

// viewEdgeKind names a kind of edge.
func viewEdgeKind(edge maps.EdgeKind) string {
	switch edge {
	case maps.EdgeNode:
		return "node"
	case maps.EdgePod:
		return "pod"
	default:
		return "none"
	}
}

// deviceProblems lists what is wrong with the devices, once they are looked at.
func (d *daemon) deviceProblems() []compile.Problem { return d.devices.Problems() }

// policyProblems lists what keeps policies of XFRM from being respected.
func (d *daemon) policyProblems() []compile.Problem {
	if d.policies == nil {
		return nil
	}
	return d.policies.Problems()
}

// nodeProblems lists what keeps traffic of Services from where it is sent, once that is looked at.
func (d *daemon) nodeProblems() []compile.Problem { return d.surroundings.Problems() }

// pods lists the Pods of the node, as far as they are known.
func (d *daemon) pods() []compile.Pod {
	all, namespaces := d.store.Pods()
	pods, _ := compile.Pods(all, namespaces, d.config.nodeName) // their problems are told by followPods
	return pods
}

// sizeProblems lists the maps that are of another size than was asked for.
func (d *daemon) sizeProblems() []compile.Problem {
	var problems []compile.Problem
	for _, size := range []struct {
		flag  string
		m     *ebpf.Map
		asked uint32
	}{
		{"--max-services", d.set.ServiceStats, d.config.sizes.Services},
		{"--max-frontends", d.set.Frontends, d.config.sizes.Frontends},
		{"--max-backends", d.set.Backends, d.config.sizes.Backends},
		{"--max-slot-blocks", d.set.Slots, d.config.sizes.SlotBlocks},
		{"--max-flows", d.set.FlowsIPv4, d.config.sizes.FlowsIPv4},
		{"--max-flows-ipv6", d.set.FlowsIPv6, d.config.sizes.FlowsIPv6},
		{"--max-embryos", d.set.Embryos, d.config.sizes.Embryos},
		{"--max-source-ranges", d.set.Sources, d.config.sizes.Sources},
		{"--max-affinity", d.set.Affinity, d.config.sizes.Affinity},
		{"--max-devices", d.set.Devices, d.config.sizes.Devices},
	} {
		if size.m.MaxEntries() != size.asked {
			problems = append(problems, compile.Problem{
				Object: "Agent", Reason: "SizeKept",
				Message: fmt.Sprintf("%s %d is not in force: the pinned map has room for %d; weir cleanup, which ends all flows, makes way for another size",
					size.flag, size.asked, size.m.MaxEntries()),
			})
		}
	}
	return problems
}
