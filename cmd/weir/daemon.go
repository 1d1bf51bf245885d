package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	clientset "k8s.io/client-go/kubernetes"

	"github.com/weir-lb/weir/controlplane"
	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/controlplane/clusterips"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/detectlocal"
	"github.com/weir-lb/weir/controlplane/devices"
	"github.com/weir-lb/weir/controlplane/dsr"
	"github.com/weir-lb/weir/controlplane/events"
	"github.com/weir-lb/weir/controlplane/foreign"
	"github.com/weir-lb/weir/controlplane/health"
	"github.com/weir-lb/weir/controlplane/masquerade"
	"github.com/weir-lb/weir/controlplane/metrics"
	"github.com/weir-lb/weir/controlplane/namespaces"
	"github.com/weir-lb/weir/controlplane/sockets"
	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/controlplane/store"
	"github.com/weir-lb/weir/controlplane/surroundings"
	"github.com/weir-lb/weir/controlplane/sweep"
	"github.com/weir-lb/weir/controlplane/vips"
	"github.com/weir-lb/weir/controlplane/xfrm"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

const (
	// gatherFor is for how long changes are collected while others are being written.
	gatherFor = 5 * time.Millisecond
	// sweepEvery is the pause between two sweeps of the flow tables.
	sweepEvery = 10 * time.Second
)

// daemon is the parts of a running agent.
type daemon struct {
	config   agentConfig
	log      *zap.Logger
	board    *status.Board
	set      *maps.Set
	programs *loader.Programs
	features loader.Features
	attacher *loader.Attacher
	applier  *apply.Applier

	nodeNetNS   uint64               // cookie of the agent's network namespace; 0: the kernel tells none
	namespaces  *namespaces.Registry // nil: they are not told apart
	edge        status.Sockets       // of the parts that are made, then of retrySockets
	kernel      *loader.Sockets      // nil: the kernel does not tell which sockets are connected to what
	closer      *sockets.Closer      // nil: neither
	podProblems atomic.Pointer[[]compile.Problem]

	store      *store.Store
	client     clientset.Interface // of the API server; nil where manifests are served
	source     objectSource
	controller *controlplane.Controller
	devices    *devices.Manager
	sweeper    *sweep.Sweeper
	foreign    *foreign.Recorder
	dsr        *dsr.Member
	policies   *xfrm.Follower

	masquerade *masquerade.Rules // nil: nothing is masqueraded by rules

	kernelProblems []compile.Problem // of what the configuration asks for
	surroundings   *surroundings.Checker
	savings        savings

	events      *events.Recorder // nil where manifests are served
	metrics     *metrics.Metrics
	programming *metrics.Programming
	proxy       *health.Proxy
	checks      *health.Services

	synced  chan struct{} // closed when the maps have held all services
	changed chan struct{} // holds one token while the board is behind
	applied chan struct{} // holds one token while the devices do not know of the latest backends
	checked chan struct{} // holds one token while the health checks do not know of the latest endpoints
}

// newDaemon makes the parts, and adopts what is pinned. The datapath is changed by nothing but a newer version of a
// program.
func newDaemon(config agentConfig, board *status.Board) (*daemon, error) {
	d := &daemon{
		config: config, board: board, log: logTo(config.log, board),
		changed: make(chan struct{}, 1), applied: make(chan struct{}, 1),
		checked: make(chan struct{}, 1), synced: make(chan struct{}), savings: beginSavings(),
	}
	d.configureKernel()
	for _, part := range []func() error{d.makeSource, d.makeDatapath, d.makeControlplane, d.makeSockets, d.makeDevices, d.makeDSR} {
		if err := part(); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	return d, nil
}

// makeDatapath creates or adopts maps and programs.
func (d *daemon) makeDatapath() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	var err error
	if d.features, err = loader.Probe(); err != nil {
		return err
	}
	clsact, err := wantsClsact(d.config.attachMode, d.features)
	if err != nil {
		return err
	}
	pins := pinsDir(d.config.bpffs)
	d.set, err = maps.Create(pins, d.config.sizes)
	if err != nil {
		return err
	}
	if d.nodeNetNS, err = d.config.nodeNetNS(); err != nil {
		return err
	}
	d.programs, err = loader.Adopt(pins, d.set, loader.Constants{
		SNATPortMin: d.config.snatPorts.First, SNATPortMax: d.config.snatPorts.Last,
		JiffiesPerSecond: d.features.JiffiesPerSecond, CsumIPv6Flag: d.features.CsumIPv6Flag,
		XDPFrags: d.features.XDPFrags, SetRetval: d.features.SetRetval, NoAtomics: !d.features.Atomics, NodeNetNS: d.nodeNetNS,
		SocketHostOnly: d.config.socketLB == "host", InsideBySource: d.config.local.BySource(), MasqueradeMark: d.makeMasquerade(),
		PolicyMark: d.config.masquerade.mark(), Quarantine: uint32(d.config.quarantine / time.Second),
	})
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		d.log.Debug("the verifier refused a program", zap.String("log", fmt.Sprintf("%+v", refused)))
	}
	if err != nil {
		return err
	}
	if d.config.local.Static() {
		if err := detectlocal.Write(d.set, d.config.local.Prefixes(nil)); err != nil {
			return err
		}
	}
	d.attacher, err = loader.NewAttacher(d.programs, d.set, loader.AttachOptions{
		Pins: pins, XDP: loader.XDPMode(d.config.xdp), Clsact: clsact, Features: d.features, Log: d.log,
	})
	return err
}

// wantsClsact tells whether programs are attached as clsact filters where the kernel has tcx.
func wantsClsact(mode string, features loader.Features) (bool, error) {
	if mode == "tcx" && !features.TCX {
		return false, errors.New("the kernel has no tcx: boot Linux 6.6 or newer, or use --attach-mode auto")
	}
	return mode == "clsact", nil
}

// makeControlplane makes what brings the services into the maps, and sweeps the flows.
func (d *daemon) makeControlplane() error {
	d.makeHealth()
	var err error
	if d.applier, err = apply.New(d.set, d.log, d.applierOptions()...); err != nil {
		return err
	}
	addresses := clusterips.NewWriter(d.set)
	d.controller = controlplane.New(controlplane.Options{
		Store: d.store, Applier: vips.Follow(d.applier, d.set, d.config.vipPing), Addresses: addresses, NodeName: d.config.nodeName, ProxyName: d.config.source.proxyName, Log: d.log,
		SNATPorts: compile.PortRange(d.config.snatPorts), DSR: d.config.dsr(),
		Problems: []func() []compile.Problem{
			d.source.Problems, d.deviceProblems, d.sizeProblems, d.socketProblems, d.checkProblems,
			d.config.configProblems, addresses.Problems, d.nodeProblems, d.dsrProblems, d.policyProblems, func() []compile.Problem { return d.kernelProblems },
		},
		Applied: d.appliedObject,
		Written: func(took time.Duration, _ bool, err error) {
			d.metrics.Written(took, err)
			d.savings.wrote(err)
		},
		Departed: d.backendsLeft,
	})
	d.surroundings = surroundings.New(surroundings.Options{Services: d.controller.Each, Pods: d.pods, Log: d.log})
	d.sweeper, err = sweep.New(sweep.Options{
		Set: d.set, Programs: d.programs, Applier: d.applier,
		Timeouts: d.config.timeouts, Interval: sweepEvery,
		JiffiesPerSecond: d.features.JiffiesPerSecond, Log: d.log,
	})
	return err
}

// makeDevices makes what follows the network devices.
func (d *daemon) makeDevices() error {
	var err error
	d.devices, err = devices.New(devices.Options{
		Set: d.set, Attacher: d.attacher, Patterns: d.config.devices, NodePorts: d.config.nodePorts, Inside: d.config.local.Device,
		Log: d.log, Changed: d.devicesChanged,
	})
	if err == nil {
		d.makeForeign()
		d.policies, err = xfrm.New(xfrm.Options{Set: d.set, Masquerade: d.masqueradeForPolicies, Log: d.log})
	}
	return err
}

// devicesChanged says that devices may be others: with a pod's device comes its network namespace.
func (d *daemon) devicesChanged() {
	wake(d.changed)
	d.dsr.Touch()
	if d.namespaces != nil {
		d.namespaces.Touch()
	}
}

// run keeps everything going until the context ends or a part fails.
func (d *daemon) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	part := func(name string, run func(context.Context) error) {
		group.Go(func() error {
			err := run(ctx)
			if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
				return nil
			}
			if err == nil {
				err = errors.New("it ended")
			}
			return fmt.Errorf("%s: %w", name, err)
		})
	}
	if d.client != nil {
		d.events = events.Start(ctx, d.client, d.config.nodeName, d.store)
	}
	part("follow the objects", d.source.Run)
	part("write the maps", func(ctx context.Context) error { d.controller.Run(ctx); return nil })
	part("follow the devices", d.devices.Run)
	part("sweep the flows", d.sweeper.Run)
	part("take part in DSR", d.takePart)
	part("record foreign flows", d.foreign.Run)
	part("follow the policies of XFRM", d.policies.Run)
	part("follow the backends", d.followBackends)
	part("follow the pods", d.followPods)
	part("attach the socket edge", d.retrySockets)
	if d.closer != nil {
		part("close sockets of removed backends", d.closer.Run)
	}
	if d.masquerade != nil {
		part("keep the rules of --masquerade-all", func(ctx context.Context) error {
			return d.masquerade.Keep(ctx, func(err error) { d.log.Error("keep the rules of --masquerade-all", zap.Error(err)) })
		})
	}
	if d.namespaces != nil {
		part("follow the network namespaces", d.namespaces.Run)
	}
	part("look at the node", d.surroundings.Run)
	part("look after connections of kube-proxy", d.releaseKubeProxy)
	part("tell the status", d.tell)
	part("answer the health checks of Services", d.answerChecks)
	part("answer /healthz", d.serveHealth)
	part("answer /metrics", d.serveMetrics)
	d.log.Info("agent started", zap.String("node", d.config.nodeName), zap.String("bpffs", d.config.bpffs),
		zap.Stringer("source", d.config.source), zap.String("version", version))
	err := group.Wait()
	d.log.Info("agent stopped; what is in the maps goes on", zap.Uint64("writes", d.applier.Writes()),
		zap.Any("attachments", d.attacher.Changes()))
	return err
}

// close lets go of what is held open. What is pinned stays.
func (d *daemon) close() error {
	var err error
	if d.attacher != nil {
		err = errors.Join(err, d.attacher.Close())
	}
	if d.kernel != nil {
		err = errors.Join(err, d.kernel.Close())
	}
	if d.programs != nil {
		err = errors.Join(err, d.programs.Close())
	}
	if d.set != nil {
		err = errors.Join(err, d.set.Close())
	}
	return err
}
