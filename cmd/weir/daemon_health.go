package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/health"
	"github.com/weir-lb/weir/controlplane/metrics"
	"github.com/weir-lb/weir/controlplane/store"
	"github.com/weir-lb/weir/maps"
)

const (
	// checkAgain is how often health checks that could not be answered are tried again.
	checkAgain = 5 * time.Second
	// proxyMode is what /proxyMode says.
	proxyMode = "weir"
	// taintToBeDeleted is what the cluster autoscaler puts on a node before it takes it away.
	taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"
)

// makeHealth makes what tells others how the agent is.
func (d *daemon) makeHealth() {
	d.metrics = metrics.New(version, metrics.NewDatapath(d.set, d.fills), d.state)
	d.programming = metrics.NewProgramming(time.Now(), d.metrics.Programmed)
	d.proxy = health.NewProxy(health.Options{
		Late: d.config.late, Progress: d.progress, Eligible: d.eligible, Answered: d.metrics.Answered,
	})
	d.checks = health.NewServices(d.proxy.Healthy, d.log)
}

// appliedObject is told of each object that has reached the maps.
func (d *daemon) appliedObject(object store.Key, _, applied time.Time) {
	wake(d.changed)
	wake(d.applied)
	wake(d.checked)
	if object.Namespace == "" { // a Node
		d.dsr.Touch()
	}
	item := d.store.Get(object)
	d.programming.Applied(object, item.Service, item.Slices, applied)
}

// progress is how far the maps are behind.
func (d *daemon) progress() health.Progress {
	status := d.controller.Progress()
	return health.Progress{Applied: status.LastApplied, Lag: status.Lag}
}

// eligible tells whether load balancers shall send to this node (rule Hc4). Until the API server has said anything of
// it, they shall: what is in the maps is served.
func (d *daemon) eligible() bool {
	node := d.store.Node(d.config.nodeName)
	if node == nil {
		return !d.source.NodeMissing()
	}
	tainted := func(taint corev1.Taint) bool { return taint.Key == taintToBeDeleted }
	return node.DeletionTimestamp.IsZero() && !slices.ContainsFunc(node.Spec.Taints, tainted)
}

// state is what the metrics say of the agent.
func (d *daemon) state() metrics.State {
	status := d.controller.Status()
	state := metrics.State{
		Synced: status.Synced, Services: status.Services, Frontends: status.Frontends, Problems: status.Problems,
		Applied: status.LastApplied, Lag: status.Lag, All: d.controller.Each,
	}
	state.Changes, state.Waiting = d.controller.Changes()
	return state
}

// fills is how full the maps are.
func (d *daemon) fills() ([]metrics.Fill, error) {
	views, err := readFill(d.set)
	fills := make([]metrics.Fill, len(views))
	for i, view := range views {
		fills[i] = metrics.Fill{Map: view.Name, Used: view.Used, Capacity: view.Capacity}
	}
	return fills, err
}

// answerChecks answers the health checks of Services, where NodePorts answer.
func (d *daemon) answerChecks(ctx context.Context) error {
	defer d.checks.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.checked:
		case <-time.After(checkAgain):
		}
		addresses, err := d.checkAddresses()
		if err != nil {
			return err
		}
		d.checks.Set(d.controller.HealthChecks(), addresses)
	}
}

// checkAddresses returns the addresses that health checks are answered on; none: all.
func (d *daemon) checkAddresses() ([]netip.Addr, error) {
	if !d.config.nodePorts.Primary && len(d.config.nodePorts.Prefixes) == 0 {
		return nil, nil
	}
	var addresses []netip.Addr
	err := maps.Each(d.set.NodeAddrs, func(address maps.Address, _ uint32) bool {
		addresses = append(addresses, netip.AddrFrom16(address.Bytes).Unmap())
		return true
	})
	slices.SortFunc(addresses, netip.Addr.Compare)
	return addresses, err
}

// checkProblems lists the health checks that cannot be answered.
func (d *daemon) checkProblems() []compile.Problem { return d.checks.Problems() }

// serveHealth answers /healthz and /livez.
func (d *daemon) serveHealth(ctx context.Context) error {
	return d.serve(ctx, d.config.health.healthz, d.proxy.Handler())
}

// serveMetrics answers /metrics and what kube-proxy has beside it.
func (d *daemon) serveMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("/metrics", d.metrics.Handler())
	mux.HandleFunc("/healthz", plain("ok"))
	mux.HandleFunc("/proxyMode", plain(proxyMode))
	mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(d.config.effective()) // whoever asked may have gone
	})
	if d.config.health.profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return d.serve(ctx, d.config.health.metrics, mux)
}

// serve answers on an address, if there is one, until the context ends.
func (d *daemon) serve(ctx context.Context, address string, handler http.Handler) error {
	if address == "" {
		<-ctx.Done()
		return nil
	}
	return health.Serve(ctx, address, handler, d.config.health.hardFail, d.log)
}

// plain answers with a text.
func plain(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		fmt.Fprint(w, text)
	}
}
