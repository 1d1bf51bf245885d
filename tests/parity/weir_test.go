package parity

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/detectlocal"
	"github.com/weir-lb/weir/controlplane/store"
)

// weir is Weir up to the maps it writes: its store, its controller, and what that compiles. What the programs then do is
// restated in answer; the tests of the programs hold them to it.
type weir struct {
	store      *store.Store
	controller *controlplane.Controller
	services   map[compile.ID]compile.Service
	local      detectlocal.Detector
}

func newWeir(mode localMode) (*weir, error) {
	local, err := detectlocal.Parse(detectlocal.Settings(mode))
	if err != nil {
		return nil, err
	}
	w := &weir{store: store.New(0), services: map[compile.ID]compile.Service{}, local: local}
	w.controller = controlplane.New(controlplane.Options{Store: w.store, Applier: w, NodeName: hereName, Log: zap.NewNop()})
	return w, nil
}

func (w *weir) run(ctx context.Context) { w.controller.Run(ctx) }

// Sync is of controlplane.Applier.
func (w *weir) Sync(all []compile.Service) error {
	clear(w.services)
	return w.Apply(all, nil)
}

// Apply is of controlplane.Applier.
func (w *weir) Apply(changed []compile.Service, removed []compile.ID) error {
	for _, service := range changed {
		w.services[service.ID] = service
	}
	for _, id := range removed {
		delete(w.services, id)
	}
	return nil
}

// Problems is of controlplane.Applier.
func (w *weir) Problems() []compile.Problem { return nil }

// outcome returns what becomes of connections.
func (w *weir) outcome() outcome {
	outcome, prefixes := newOutcome(), w.local.Prefixes(w.store.Node(hereName))
	for _, service := range w.services {
		family := corev1.IPFamily(service.ID.Family.String())
		for _, frontend := range service.Frontends {
			address := frontend.Address.Addr().String()
			if frontend.Kind == compile.NodePort {
				address = "NodePort"
			}
			for _, from := range origins {
				for _, c := range from.clients(family) {
					q := question{family, corev1.Protocol(service.ID.Protocol.String()), address, int(frontend.Address.Port()), from, c}
					backends := service.Outside
					if isInside(w.local, prefixes, from, c) {
						backends = service.Inside
					}
					outcome.answers[q] = answerOf(service, frontend.Kind, backends, from, c.source)
				}
			}
		}
	}
	for service, check := range w.controller.HealthChecks() {
		outcome.healthChecks[service.String()] = fmt.Sprintf("port %d, %d local", check.Port, check.Local)
	}
	return outcome
}

// answerOf says where a service sends a connection, whose side has those backends.
func answerOf(service compile.Service, kind compile.FrontendKind, backends []compile.Backend, from origin, source netip.Addr) answer {
	admits := func(prefix netip.Prefix) bool { return prefix.Contains(source) }
	switch {
	case kind == compile.LoadBalancer && service.Restricted && !slices.ContainsFunc(service.Sources, admits):
		return answer{verdict: dropped}
	case service.NoEndpoints:
		return answer{verdict: rejected}
	case len(backends) == 0:
		return answer{verdict: dropped}
	}
	a := answer{verdict: forwarded, affinity: int(service.AffinityTimeout / time.Second)}
	for _, backend := range backends {
		a.endpoints = append(a.endpoints, destination{
			address:     backend.Address,
			masqueraded: from == fromOutside && !backend.Local,
		})
	}
	return a
}
