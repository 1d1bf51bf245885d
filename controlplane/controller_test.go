package controlplane

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// TestS09_SyncFirst: nothing is written before the listing is complete; then everything, once; an empty
// listing is written, too, since an earlier agent may have left something.
func TestS09_SyncFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.update(newService("a", "10.96.0.1", 1), newSlice("a", "10.244.0.1"))
		w.expect("before the sync", "")
		if w.controller.Status().Synced {
			t.Error("status says synced")
		}
		w.store.Synced()
		w.expect("at the sync", "sync")
		if !w.controller.Status().Synced {
			t.Error("status says not synced")
		}

		empty := start(t)
		empty.store.Synced()
		empty.expect("an empty listing", "sync")
	})
}

// TestOnlyWhatChanged: one change writes one service, and a change that makes no difference writes none.
func TestOnlyWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.update(newService("a", "10.96.0.1", 1), newService("b", "10.96.0.2", 1), newSlice("a", "10.244.0.1"))
		w.store.Synced()
		w.expect("start", "sync")
		w.update(newSlice("a", "10.244.0.1", "10.244.0.2"))
		w.expect("an endpoint more", "apply 1 0")
		w.update(newSlice("a", "10.244.0.1", "10.244.0.2"), newService("b", "10.96.0.2", 1))
		w.expect("the same again", "")
		w.update(newService("a", "None", 1))
		w.expect("S02: a becomes headless", "apply 0 1")
	})
}

// TestE14_VIPAsEndpoint: refused while the other Service has the address, in whichever order they come.
func TestE14_VIPAsEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.update(newService("a", "10.96.0.1", 1), newSlice("a", "10.244.0.1", "10.96.0.2", "192.0.2.1"))
		w.store.Synced()
		w.expect("start", "sync")
		w.update(newService("b", "10.96.0.2", 1))
		w.expect("b takes a's endpoint for its ClusterIP", "apply 2 0")
		if got := w.backends("a"); !slices.Equal(got, []string{"10.244.0.1:8080", "192.0.2.1:8080"}) {
			t.Errorf("a has %v", got)
		}
		if p := w.controller.Status().Problems; len(p) != 2 || p[0].Reason != "EndpointRefused" || !strings.Contains(p[0].Message, "default/b") {
			t.Errorf("problems are %v", p)
		}
		b := newService("b", "10.96.0.3", 1)
		w.update(b)
		w.expect("b lets go", "apply 2 0")
		if got := w.backends("a"); len(got) != 3 {
			t.Errorf("a has %v", got)
		}
		external := newService("b", "10.96.0.3", 1, "192.0.2.1")
		external.Spec.Ports[0].Port = 8080
		w.update(external)
		w.expect("b has another endpoint's address and port", "apply 2 0")
		if got := w.backends("a"); len(got) != 2 {
			t.Errorf("a has %v", got)
		}
		w.update(newNode("n2", "", "192.0.2.1"))
		w.expect("which is a node's", "apply 1 0")
		if got := w.backends("a"); len(got) != 3 {
			t.Errorf("a has %v", got)
		}
	})
}

// TestContestedFrontend: the younger Service does without, says so, and gets it when the older one goes.
func TestContestedFrontend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.update(newService("young", "10.96.0.1", 2))
		w.store.Synced()
		w.expect("start", "sync")
		w.update(newService("old", "10.96.0.1", 1))
		w.expect("an older one comes", "apply 1 1")
		if p := w.controller.Status().Problems; len(p) != 2 || p[1].Object != "Service default/young" {
			t.Errorf("problems are %v", p)
		}
		gone := newService("old", "", 1)
		b := batchOf(gone)
		b.Services[store.Key{Namespace: "default", Name: "old"}] = nil
		w.store.Update(b)
		w.expect("and goes", "apply 1 1")
		if p := w.controller.Status().Problems; len(p) != 1 {
			t.Errorf("problems are %v", p)
		}
	})
}

// TestH03_NodeChange: the zone decides, live, and a node that changes in other ways costs nothing.
func TestH03_NodeChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		slice := newSlice("a", "10.244.0.1", "10.244.0.2")
		for i, zone := range []string{"east", "west"} {
			slice.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
		}
		w.update(newService("a", "10.96.0.1", 1), newService("b", "10.96.0.2", 1), slice)
		w.store.Synced()
		w.expect("no node", "sync")
		if got := w.backends("a"); len(got) != 2 {
			t.Errorf("a has %v", got)
		}
		w.update(newNode("n1", "west", "192.0.2.1"))
		w.expect("west", "apply 1 0")
		if got := w.backends("a"); !slices.Equal(got, []string{"10.244.0.2:8080"}) {
			t.Errorf("a has %v", got)
		}
		if _, told := w.latencies[store.Key{Name: "n1"}]; !told {
			t.Error("the node's change was not reported as applied")
		}
		labelled := newNode("n1", "west", "192.0.2.1")
		labelled.Labels["color"] = "red"
		w.update(labelled, newNode("n2", "east", "192.0.2.2"))
		w.expect("another label, another node", "")
	})
}

// TestRetry: a failed write is retried with growing pauses, as a whole, and at once when something changes.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.update(newService("a", "10.96.0.1", 1))
		w.store.Synced()
		w.expect("start", "sync")

		w.maps.breakDown(errors.New("put service 1: no memory"))
		w.update(newService("b", "10.96.0.2", 1))
		w.expect("the write fails", "apply 1 0")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := strings.Count(w.maps.take(), "sync"); n < 8 || n > 11 {
			t.Errorf("%d tries in 10 s; want them to get rare", n)
		}
		status := w.controller.Status()
		if status.LastError != "put service 1: no memory" || status.Failures < 9 || status.Pending != 1 {
			t.Errorf("status is %+v", status)
		}
		if status.Lag < 10*time.Second {
			t.Errorf("lag is %v, want as long as it has failed", status.Lag)
		}

		w.maps.breakDown(nil)
		w.update(newService("c", "10.96.0.3", 1))
		w.expect("a new change brings the try forward", "sync")
		status = w.controller.Status()
		if status.Lag != 0 || status.Failures != 0 || status.Pending != 0 || status.LastLatency < 10*time.Second {
			t.Errorf("status is %+v", status)
		}
		w.update(newService("d", "10.96.0.4", 1))
		w.expect("then all is as before", "apply 1 0")
	})
}

// TestRetryAlone: a failed write is made good without any further change.
func TestRetryAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.maps.breakDown(errors.New("map full"))
		w.update(newService("a", "10.96.0.1", 1))
		w.store.Synced()
		time.Sleep(time.Minute)
		w.maps.breakDown(nil)
		time.Sleep(34 * time.Second)
		synctest.Wait()
		if status := w.controller.Status(); !status.Synced || status.Lag != 0 {
			t.Errorf("status is %+v", status)
		}
	})
}

// TestChangesWaiting: a change waits until the maps have it, however often writing fails.
func TestChangesWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		expect := func(what string, all, waiting store.Changes) {
			t.Helper()
			if gotAll, gotWaiting := w.controller.Changes(); gotAll != all || gotWaiting != waiting {
				t.Errorf("%s: %+v, of which %+v wait; want %+v and %+v", what, gotAll, gotWaiting, all, waiting)
			}
		}
		w.update(newService("a", "10.96.0.1", 1), newSlice("a", "10.244.0.1"))
		expect("before the sync", store.Changes{Services: 1, Slices: 1}, store.Changes{Services: 1, Slices: 1})
		w.store.Synced()
		w.expect("start", "sync")
		expect("written", store.Changes{Services: 1, Slices: 1}, store.Changes{})
		w.maps.breakDown(errors.New("map full"))
		w.update(newSlice("a", "10.244.0.2"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		expect("writing fails", store.Changes{Services: 1, Slices: 2}, store.Changes{Slices: 1})
		w.maps.breakDown(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		expect("made good", store.Changes{Services: 1, Slices: 2}, store.Changes{})
	})
}

// Problems of the maps are told as they are now: a sweep makes room without any change of an object.
func TestProblemsOfTheMapsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.maps.setProblems(compile.Problem{Object: "Service default/a", Reason: "NoRoom", Message: "full"})
		w.update(newService("a", "10.96.0.1", 1))
		w.store.Synced()
		w.expect("start", "sync")
		w.maps.setProblems()
		for _, problem := range w.controller.Status().Problems {
			if problem.Reason == "NoRoom" {
				t.Errorf("there is room, and the status says %v", problem)
			}
		}
	})
}

// TestStatus: lag counts from the arrival of the change, problems come from everywhere, in order.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.maps.setProblems(compile.Problem{Object: "Service default/a", Reason: "NoRoom", Message: "full"})
		lost := newSlice("a", "10.244.0.1")
		lost.Labels = nil
		w.update(newService("a", "10.96.0.1", 1), lost)
		time.Sleep(time.Second)
		if lag := w.controller.Status().Lag; lag != time.Second {
			t.Errorf("lag before the sync is %v, want 1s", lag)
		}
		w.store.Synced()
		w.expect("start", "sync")
		status := w.controller.Status()
		var got []string
		for _, problem := range status.Problems {
			got = append(got, problem.Object+" "+problem.Reason)
		}
		want := []string{
			"EndpointSlice default/a-1 ServiceNameMissing",
			"File x.yaml DocumentRefused",
			"Service default/a NoRoom",
		}
		if !slices.Equal(got, want) {
			t.Errorf("problems are %q, want %q", got, want)
		}
		if status.Services != 1 || status.Frontends != 1 || status.LastLatency != time.Second {
			t.Errorf("status is %+v", status)
		}
		if latency := w.latencies[store.Key{Namespace: "default", Name: "a"}]; latency != time.Second {
			t.Errorf("reported latency is %v", latency)
		}
	})
}

// TestRandomHistories: after random changes, with writes that fail now and then, the maps hold what a
// controller that starts from the same objects would write.
func TestRandomHistories(t *testing.T) {
	for range 30 {
		seed := rand.Uint64()
		synctest.Test(t, func(t *testing.T) { runHistory(t, seed) })
	}
}

func runHistory(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	w := start(t)
	w.store.Synced()
	for range 60 {
		w.maps.breakDown(nil)
		if random.IntN(6) == 0 {
			w.maps.breakDown(errors.New("broken for a while"))
		}
		w.store.Update(randomBatch(random))
		time.Sleep(time.Duration(random.IntN(8)) * time.Millisecond)
	}
	w.maps.breakDown(nil)
	time.Sleep(time.Minute)
	synctest.Wait()

	fresh := newDesired("n1", "", w.store.Get)
	fresh.node = w.controller.desired.node
	fresh.update(w.store.All())
	for id, want := range fresh.services {
		if got, there := w.maps.services[id]; !there || !got.Equal(*want) {
			t.Errorf("seed %d: %s is %+v, want %+v", seed, id, got, want)
		}
	}
	if len(w.maps.services) != len(fresh.services) {
		t.Errorf("seed %d: %d services, want %d", seed, len(w.maps.services), len(fresh.services))
	}
	if got, want := fmt.Sprint(w.controller.desired.frontends.Problems()), fmt.Sprint(fresh.frontends.Problems()); got != want {
		t.Errorf("seed %d: problems are %s, want %s", seed, got, want)
	}
	for _, wrong := range w.maps.wrong {
		t.Errorf("seed %d: %s", seed, wrong)
	}
}

// randomBatch changes a few Services and slices out of so few that they collide.
func randomBatch(random *rand.Rand) store.Batch {
	b := batchOf()
	address := func(third byte) string {
		return netip.AddrFrom4([4]byte{10, 0, third, byte(random.IntN(4))}).String()
	}
	for range 1 + random.IntN(3) {
		name := fmt.Sprintf("s%d", random.IntN(5))
		key, sliceKey := store.Key{Namespace: "default", Name: name}, store.Key{Namespace: "default", Name: name + "-1"}
		switch random.IntN(6) {
		case 0:
			b.Services[key] = nil
		case 1:
			b.Slices[sliceKey] = nil
		case 2:
			b.Slices[sliceKey] = newSlice(name, address(0), address(1))
		case 3:
			node := newNode("n1", "", address(0))
			b.Nodes[node.Name] = node
		default:
			service := newService(name, address(0), random.Int64N(3), address(1))
			service.Spec.Ports[0].Port = 8080
			if random.IntN(3) == 0 {
				service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			}
			b.Services[key] = service
		}
	}
	return b
}
