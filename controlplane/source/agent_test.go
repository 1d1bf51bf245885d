package source_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/source"
	"github.com/weir-lb/weir/controlplane/store"
)

// recorder is an Applier that remembers every state the maps would have been in.
type recorder struct {
	mu       sync.Mutex
	services map[string][]string // by name -> "address" of the backends
	states   []string
	applied  chan time.Time
}

func (r *recorder) Sync(all []compile.Service) error {
	r.mu.Lock()
	r.services = map[string][]string{}
	r.mu.Unlock()
	return r.Apply(all, nil)
}

func (r *recorder) Apply(changed []compile.Service, removed []compile.ID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, service := range changed {
		backends := []string{}
		for _, backend := range service.Inside {
			backends = append(backends, backend.Address.String())
		}
		r.services[service.ID.Name] = backends
	}
	for _, id := range removed {
		delete(r.services, id.Name)
	}
	r.states = append(r.states, r.state())
	select {
	case r.applied <- time.Now():
	default:
	}
	return nil
}

func (r *recorder) Problems() []compile.Problem { return nil }

// state describes what the maps hold: "a:2 b:0", names and numbers of backends.
func (r *recorder) state() string {
	var words []string
	for name, backends := range r.services {
		words = append(words, fmt.Sprintf("%s:%d", name, len(backends)))
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// agent is everything from the directory to the maps.
type agent struct {
	t         *testing.T
	directory string
	maps      *recorder
	manifests *source.Manifests
}

// startAgent runs one on a directory; it ends with the test, or when stop is called.
func startAgent(t *testing.T, directory, saved string) (a *agent, stop func()) {
	t.Helper()
	objects := store.New(5 * time.Millisecond)
	manifests, err := source.NewManifests(source.Options{Directory: directory, Store: objects, Log: zap.NewNop(), Saved: saved})
	if err != nil {
		t.Fatal(err)
	}
	maps := &recorder{applied: make(chan time.Time, 1)}
	controller := controlplane.New(controlplane.Options{Store: objects, Applier: maps, NodeName: "n1", Log: zap.NewNop()})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := manifests.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() { controller.Run(ctx) })
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return &agent{t, directory, maps, manifests}, stop
}

// newAgent runs an agent on a directory with one file.
func newAgent(t *testing.T, content string) *agent {
	t.Helper()
	directory := filepath.Join(t.TempDir(), "manifests")
	if err := os.Mkdir(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, "a.yaml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	a, _ := startAgent(t, directory, "")
	return a
}

// write writes a file of the directory as a whole.
func (a *agent) write(name, content string) {
	a.t.Helper()
	a.must(os.WriteFile(filepath.Join(a.directory, name), []byte(content), 0o600))
}

func (a *agent) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// expect waits until the maps are in a state.
func (a *agent) expect(want string) {
	a.t.Helper()
	var got string
	for range 500 {
		a.maps.mu.Lock()
		got = a.maps.state()
		a.maps.mu.Unlock()
		if got == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	a.t.Fatalf("the maps hold %q, want %q", got, want)
}

// states returns the states since it was last asked.
func (a *agent) states() []string {
	a.maps.mu.Lock()
	defer a.maps.mu.Unlock()
	states := a.maps.states
	a.maps.states = nil
	return states
}

// app returns a Service with a number of endpoints.
func app(name string, number, endpoints int) string {
	text := fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  clusterIP: 10.96.0.%[2]d
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: %[1]s-1
  labels: {kubernetes.io/service-name: %[1]s}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
`, name, number)
	for i := range endpoints {
		text += fmt.Sprintf("- addresses: [10.244.%d.%d]\n", number, i+1)
	}
	return text
}

// waitForProblems waits until there are problems of these reasons and no others.
func (a *agent) waitForProblems(reasons ...string) {
	a.t.Helper()
	var got []string
	for range 500 {
		got = nil
		for _, problem := range a.manifests.Problems() {
			got = append(got, problem.Reason)
		}
		if slices.Equal(got, reasons) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	a.t.Fatalf("problems are %q, want %q", got, reasons)
}
