package parity

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/controlplane/store"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "the first seed; 0 is one of the clock's")
	casesFlag = flag.Int("cases", 100_000, "how many states of a cluster to compare")
)

// steps are the changes of one history, after each of which both are compared. A history has one seed.
const steps = 50

// TestParity compares what becomes of every connection to every Service, after each step of each history.
func TestParity(t *testing.T) {
	first := *seedFlag
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	histories := max(1, *casesFlag/steps)
	t.Logf("%d histories of %d steps, seeds %d and up: repeat one with -seed N -cases %d", histories, steps, first, steps)

	seen := map[deviation]int{}
	var answers int
	var mu sync.Mutex
	t.Run("histories", func(t *testing.T) {
		const workers = 2
		for worker := range workers {
			t.Run(fmt.Sprint(worker), func(t *testing.T) {
				t.Parallel()
				for i := worker; i < histories && !t.Failed(); i += workers {
					compared, deviations := runHistory(t, first+uint64(i))
					mu.Lock()
					answers += compared
					for what, times := range deviations {
						seen[what] += times
					}
					mu.Unlock()
				}
			})
		}
	})
	t.Logf("%d states compared, %d connections in them", histories*steps, answers)
	for _, what := range deviations {
		t.Logf("%8d times: %s", seen[what], what)
		if seen[what] == 0 && histories >= 100 && !t.Failed() {
			t.Errorf("never seen: %s", what)
		}
	}
}

// TestDeviationsAreDocumented compares the list of deviations with what users read.
func TestDeviationsAreDocumented(t *testing.T) {
	document, err := os.ReadFile("../../docs/comparison.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range deviations {
		rule, text, _ := strings.Cut(string(what), ": ")
		if line := fmt.Sprintf("| %s | %s |", rule, text); !strings.Contains(string(document), line) {
			t.Errorf("docs/comparison.md has no line that begins with %q", line)
		}
	}
}

// runHistory compares after each step of one history. It returns how many connections it compared, and the deviations.
func runHistory(t *testing.T, seed uint64) (compared int, seen map[deviation]int) {
	synctest.Test(t, func(t *testing.T) {
		h := newHistory(t, seed)
		ctx, cancel := context.WithCancel(context.Background())
		go h.weir.run(ctx)
		defer synctest.Wait()
		defer cancel()
		for step := range steps {
			h.step(step)
			synctest.Wait()
			want, got := h.kubeProxy.sync(), h.weir.outcome()
			compared += len(want.answers)
			if lines := differences(want, got); len(lines) > 0 {
				t.Errorf("%s\nseed %d, step %d: of these objects, with %+v\n%s", h.describe(), seed, step, h.mode, strings.Join(lines[:min(len(lines), 8)], "\n"))
				return
			}
		}
		seen = h.kubeProxy.deviator.seen
	})
	return compared, seen
}

// history is a cluster that changes at random, as kube-proxy and Weir see it.
type history struct {
	random    *rand.Rand
	mode      localMode
	kubeProxy *kubeProxy
	weir      *weir
	services  map[types.NamespacedName]*corev1.Service
	batch     store.Batch
}

func newHistory(t *testing.T, seed uint64) *history {
	random := rand.New(rand.NewPCG(seed, 0))
	mode := randomLocalMode(random)
	k, err := newKubeProxy(mode)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWeir(mode)
	if err != nil {
		t.Fatal(err)
	}
	h := &history{random: random, mode: mode, kubeProxy: k, weir: w, services: map[types.NamespacedName]*corev1.Service{}}
	h.begin()
	h.setNode(hereName, 1)
	h.setNode("there", 2)
	h.weir.store.Update(h.batch)
	h.weir.store.Synced()
	return h
}

func (h *history) begin() {
	h.batch = store.Batch{
		Arrived: time.Now(), Services: map[store.Key]*corev1.Service{}, Slices: map[store.Key]*discoveryv1.EndpointSlice{},
		Nodes: map[string]*corev1.Node{},
	}
}

// step makes a few changes at once; the first makes many.
func (h *history) step(number int) {
	h.begin()
	changes := 1 + h.random.IntN(4)
	if number == 0 {
		changes = servicesCount * slicesCount
	}
	for range changes {
		switch h.random.IntN(10) {
		case 0, 1, 2:
			h.changeService(h.random.IntN(servicesCount))
		case 3:
			h.setNode(hereName, 1+2*h.random.IntN(2))
		default:
			h.changeSlice(h.random.IntN(servicesCount))
		}
	}
	h.weir.store.Update(h.batch)
}

func (h *history) setNode(name string, number int) {
	node := randomNode(h.random, name, number)
	h.kubeProxy.nodes[name], h.batch.Nodes[name] = node, node
}

// changeService creates a Service, changes it, or deletes it.
func (h *history) changeService(number int) {
	key := types.NamespacedName{Namespace: namespace, Name: serviceName(number)}
	service := h.services[key]
	switch {
	case service == nil:
		service = randomService(h.random, number)
	case chance(h.random, 6):
		service = nil
	default:
		service = changedService(h.random, number, service)
	}
	if h.services[key] = service; service == nil {
		delete(h.services, key)
	}
	h.kubeProxy.setService(key, service)
	h.batch.Services[key] = service
}

// changeSlice creates an EndpointSlice, replaces one, changes one endpoint of it, or deletes it.
func (h *history) changeSlice(number int) {
	family := pick(h.random, families...)
	name := fmt.Sprintf("%s-%s-%d", serviceName(number), family, h.random.IntN(slicesCount))
	key := types.NamespacedName{Namespace: namespace, Name: name}
	old := h.kubeProxy.deviator.slices[key]
	var slice *discoveryv1.EndpointSlice
	switch {
	case old == nil:
		slice = randomSlice(h.random, name, serviceName(number), family)
	case chance(h.random, 4):
	case len(old.Endpoints) > 0:
		slice = old.DeepCopy()
		slice.Endpoints[h.random.IntN(len(slice.Endpoints))] = randomEndpoint(h.random, family, randomHinting(h.random))
	default:
		slice = old.DeepCopy()
		slice.Endpoints = append(slice.Endpoints, randomEndpoint(h.random, family, randomHinting(h.random)))
	}
	if old == nil && slice == nil {
		return
	}
	h.kubeProxy.setSlice(key, slice)
	h.batch.Slices[key] = slice
}
