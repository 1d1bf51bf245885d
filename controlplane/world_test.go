package controlplane

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// fakeMaps is an Applier that holds what it is given, and checks the contract.
type fakeMaps struct {
	mu       sync.Mutex
	services map[compile.ID]compile.Service
	calls    []string // "sync", "apply 2 1"
	broken   error    // returned by every call, which then does nothing
	problems []compile.Problem
	wrong    []string // breaches of the contract
}

func (f *fakeMaps) Sync(all []compile.Service) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "sync")
	if f.broken != nil {
		return f.broken
	}
	f.services = map[compile.ID]compile.Service{}
	for _, service := range all {
		f.services[service.ID] = service
	}
	f.check()
	return nil
}

func (f *fakeMaps) Apply(changed []compile.Service, removed []compile.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf("apply %d %d", len(changed), len(removed)))
	if f.broken != nil {
		return f.broken
	}
	for _, service := range changed {
		if old, had := f.services[service.ID]; had && old.Equal(service) {
			f.wrong = append(f.wrong, fmt.Sprintf("%s is written again as it is", service.ID))
		}
		f.services[service.ID] = service
	}
	for _, id := range removed {
		if _, had := f.services[id]; !had {
			f.wrong = append(f.wrong, fmt.Sprintf("%s is removed, but is not there", id))
		}
		delete(f.services, id)
	}
	f.check()
	return nil
}

func (f *fakeMaps) Problems() []compile.Problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problems
}

// check looks for frontends with two owners, and services without any.
func (f *fakeMaps) check() {
	owners := map[string]compile.ID{}
	for id, service := range f.services {
		if len(service.Frontends) == 0 {
			f.wrong = append(f.wrong, fmt.Sprintf("%s has no frontend", id))
		}
		for _, frontend := range service.Frontends {
			key := fmt.Sprint(frontend.Address, id.Protocol)
			if other, taken := owners[key]; taken {
				f.wrong = append(f.wrong, fmt.Sprintf("%s and %s both have %s", id, other, key))
			}
			owners[key] = id
		}
	}
}

func (f *fakeMaps) setProblems(problems ...compile.Problem) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems = problems
}

// take returns the calls since it was last asked.
func (f *fakeMaps) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := strings.Join(f.calls, ", ")
	f.calls = nil
	return calls
}

func (f *fakeMaps) breakDown(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = err
}

// world is a controller that runs on fake maps.
type world struct {
	t          *testing.T
	store      *store.Store
	maps       *fakeMaps
	controller *Controller
	latencies  map[store.Key]time.Duration // as reported by Applied
}

// start runs a controller; it must be called in a synctest bubble.
func start(t *testing.T) *world {
	w := &world{
		t: t, store: store.New(5 * time.Millisecond), maps: &fakeMaps{},
		latencies: map[store.Key]time.Duration{},
	}
	w.controller = New(Options{
		Store: w.store, Applier: w.maps, NodeName: "n1", Log: zap.NewNop(),
		Problems: []func() []compile.Problem{func() []compile.Problem {
			return []compile.Problem{{Object: "File x.yaml", Reason: "DocumentRefused", Message: "bad"}}
		}},
		Applied: func(object store.Key, arrived, applied time.Time) { w.latencies[object] = applied.Sub(arrived) },
	})
	go w.controller.Run(t.Context())
	return w
}

// expect waits until nothing moves (for less than a failed write waits) and compares the calls made.
func (w *world) expect(what, calls string) {
	w.t.Helper()
	time.Sleep(6 * time.Millisecond)
	synctest.Wait()
	if got := w.maps.take(); got != calls {
		w.t.Errorf("%s: calls are %q, want %q", what, got, calls)
	}
	for _, wrong := range w.maps.wrong {
		w.t.Errorf("%s: %s", what, wrong)
	}
}

func (w *world) update(objects ...metav1.Object) {
	w.store.Update(batchOf(objects...))
}

func batchOf(objects ...metav1.Object) store.Batch {
	b := store.Batch{
		Arrived:  time.Now(),
		Services: map[store.Key]*corev1.Service{},
		Slices:   map[store.Key]*discoveryv1.EndpointSlice{},
		Nodes:    map[string]*corev1.Node{},
	}
	for _, object := range objects {
		key := store.Key{Namespace: object.GetNamespace(), Name: object.GetName()}
		switch o := object.(type) {
		case *corev1.Service:
			b.Services[key] = o
		case *discoveryv1.EndpointSlice:
			b.Slices[key] = o
		case *corev1.Node:
			b.Nodes[o.Name] = o
		}
	}
	return b
}

func newService(name, clusterIP string, created int64, externalIPs ...string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.Unix(created, 0)},
		Spec: corev1.ServiceSpec{
			ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, ExternalIPs: externalIPs,
			Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
}

func newSlice(owner string, addresses ...string) *discoveryv1.EndpointSlice {
	name, port := "", int32(8080)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: owner + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: owner},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, address := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}})
	}
	return s
}

func newNode(name, zone, address string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}},
	}
}

// backends returns where a service of port 80 in the maps sends to from inside.
func (w *world) backends(name string) []string {
	w.maps.mu.Lock()
	defer w.maps.mu.Unlock()
	var list []string
	for _, backend := range w.maps.services[idOf(name)].Inside {
		list = append(list, backend.Address.String())
	}
	return list
}

func idOf(name string) compile.ID {
	return compile.ID{Namespace: "default", Name: name, Protocol: compile.TCP, Family: compile.IPv4}
}
