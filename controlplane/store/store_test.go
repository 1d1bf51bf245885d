package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const gather = 5 * time.Millisecond

func key(name string) Key { return Key{Namespace: "default", Name: name} }

func service(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
}

func slice(name, owner string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	if owner != "" {
		s.Labels = map[string]string{discoveryv1.LabelServiceName: owner}
	}
	return s
}

func services(names ...string) Batch {
	b := Batch{Arrived: time.Now(), Services: map[Key]*corev1.Service{}}
	for _, name := range names {
		b.Services[key(name)] = service(name)
	}
	return b
}

func sliceBatch(name string, s *discoveryv1.EndpointSlice) Batch {
	return Batch{Arrived: time.Now(), Slices: map[Key]*discoveryv1.EndpointSlice{key(name): s}}
}

// describe turns work into "name(slice,slice)" words; a Service that is gone has a minus before it.
func describe(w Work) string {
	var words []string
	for _, item := range w.Items {
		var names []string
		for _, s := range item.Slices {
			names = append(names, s.Name)
		}
		sign := ""
		if item.Service == nil {
			sign = "-"
		}
		words = append(words, fmt.Sprintf("%s%s%v", sign, item.Key.Name, names))
	}
	return fmt.Sprint(words)
}

func next(t *testing.T, s *Store) Work {
	t.Helper()
	w, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func expect(t *testing.T, s *Store, want string) Work {
	t.Helper()
	w := next(t, s)
	if got := describe(w); got != want {
		t.Fatalf("work is %s, want %s", got, want)
	}
	return w
}

// expectNothing waits much longer than the store gathers.
func expectNothing(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if w, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %s, %v; want nothing", describe(w), err)
	}
}

// TestS09_NothingBeforeSync: no work before the first complete listing, then all of it at once.
func TestS09_NothingBeforeSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(gather)
		s.Update(services("a"))
		s.Update(sliceBatch("a-1", slice("a-1", "a")))
		expectNothing(t, s)
		s.Update(services("b"))
		s.Synced()
		expect(t, s, "[a[a-1] b[]]")
		expectNothing(t, s)
	})
}

// TestS09_EmptyListing: a listing without objects is a listing, too, and says that there are none.
func TestS09_EmptyListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(gather)
		expectNothing(t, s)
		s.Synced()
		expect(t, s, "[]")
		expectNothing(t, s)
		s.Update(services("a"))
		expect(t, s, "[a[]]")
	})
}

// started returns a store whose first listing was empty and is dealt with.
func started(t *testing.T) *Store {
	t.Helper()
	s := New(gather)
	s.Synced()
	expect(t, s, "[]")
	return s
}

func TestDirty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := started(t)
		steps := []struct {
			what   string
			change Batch
			want   string
		}{
			{"a Service", services("a"), "[a[]]"},
			{"its slice", sliceBatch("a-1", slice("a-1", "a")), "[a[a-1]]"},
			{"another slice before it by name", sliceBatch("a-0", slice("a-0", "a")), "[a[a-0 a-1]]"},
			{"a slice moves to a Service that is not there", sliceBatch("a-1", slice("a-1", "b")), "[a[a-0] -b[a-1]]"},
			{"which then comes", services("b"), "[b[a-1]]"},
			{"a slice goes", sliceBatch("a-0", nil), "[a[]]"},
			{"a Service goes", Batch{Services: map[Key]*corev1.Service{key("b"): nil}}, "[-b[a-1]]"},
		}
		for _, step := range steps {
			if step.change.Arrived.IsZero() {
				step.change.Arrived = time.Now()
			}
			s.Update(step.change)
			if got := describe(next(t, s)); got != step.want {
				t.Errorf("%s: work is %s, want %s", step.what, got, step.want)
			}
		}
		expectNothing(t, s)
	})
}

// TestUnchanged: the same object again is no work, nor is the removal of what is not there.
func TestUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := started(t)
		b := services("a")
		s.Update(b)
		expect(t, s, "[a[]]")
		s.Update(b)
		s.Update(Batch{Services: map[Key]*corev1.Service{key("x"): nil}, Nodes: map[string]*corev1.Node{"n": nil}})
		s.Update(sliceBatch("x", nil))
		expectNothing(t, s)
	})
}

// TestS11_SliceWithoutLabel: it is a problem, and belongs to nothing, until it has the label.
func TestS11_SliceWithoutLabel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := started(t)
		s.Update(sliceBatch("lost", slice("lost", "")))
		expectNothing(t, s)
		problems := s.Problems()
		if len(problems) != 1 || problems[0].Object != "EndpointSlice default/lost" || problems[0].Reason != "ServiceNameMissing" {
			t.Fatalf("problems are %v", problems)
		}
		s.Update(sliceBatch("lost", slice("lost", "a")))
		expect(t, s, "[-a[lost]]")
		if problems := s.Problems(); len(problems) != 0 {
			t.Fatalf("problems are %v", problems)
		}
	})
}

// TestCoalescing: at once when idle; in a stream, no more than one batch per gathering time, and no change
// waits longer than that.
func TestCoalescing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := started(t)
		time.Sleep(time.Second)

		start := time.Now()
		s.Update(services("a"))
		expect(t, s, "[a[]]")
		if waited := time.Since(start); waited != 0 {
			t.Errorf("a change on an idle store waited %v", waited)
		}

		go func() {
			for range 100 {
				s.Update(services("b", "c"))
				time.Sleep(time.Millisecond)
			}
		}()
		batches, longest := 0, time.Duration(0)
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			w, err := s.Next(ctx)
			cancel()
			if err != nil {
				break
			}
			batches++
			for _, item := range w.Items {
				longest = max(longest, time.Since(item.Arrived))
			}
		}
		if batches < 10 || batches > 21 {
			t.Errorf("100 ms of changes made %d batches, want at most one per %v", batches, gather)
		}
		if longest > gather {
			t.Errorf("a change waited %v, want at most %v", longest, gather)
		}
	})
}

// TestArrival: the oldest change not seen yet gives the time, and its consumer takes it away.
func TestArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(gather)
		first := time.Now()
		s.Update(services("a"))
		time.Sleep(time.Second)
		s.Update(services("a", "b"))
		s.Update(Batch{Arrived: time.Now(), Nodes: map[string]*corev1.Node{"n": {}}})
		if oldest, waiting := s.Oldest(); !waiting || !oldest.Equal(first) {
			t.Errorf("oldest is %v, %v; want %v", oldest, waiting, first)
		}
		s.Synced()
		w := expect(t, s, "[a[] b[]]")
		if got := w.Items[0].Arrived; !got.Equal(first) {
			t.Errorf("a arrived at %v, want %v", got, first)
		}
		if got := w.Items[1].Arrived; !got.Equal(first.Add(time.Second)) {
			t.Errorf("b arrived at %v", got)
		}
		if len(w.Nodes) != 1 || !w.NodesArrived.Equal(first.Add(time.Second)) {
			t.Errorf("nodes %v arrived at %v", w.Nodes, w.NodesArrived)
		}
		if oldest, _ := s.Oldest(); !oldest.Equal(first) {
			t.Errorf("oldest is %v while the consumer has it, want %v", oldest, first)
		}
		expectNothing(t, s)
		if _, waiting := s.Oldest(); waiting {
			t.Error("something still waits")
		}
		if item := s.Get(key("a")); item.Service == nil || !item.Arrived.IsZero() {
			t.Errorf("Get returned %+v", item)
		}
		if all := s.All(); !slices.Equal([]string{all[0].Key.Name, all[1].Key.Name}, []string{"a", "b"}) {
			t.Errorf("All returned %v", all)
		}
	})
}

// TestConcurrent: nothing is lost between many writers and the consumer. Meant for -race.
func TestConcurrent(t *testing.T) {
	const writers, changes = 4, 200
	s := New(time.Millisecond)
	s.Synced()
	for w := range writers {
		go func() {
			for c := range changes {
				s.Update(services(fmt.Sprintf("s-%d-%d", w, c)))
			}
		}()
	}
	seen := map[Key]bool{}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for len(seen) < writers*changes {
		w, err := s.Next(ctx)
		if err != nil {
			t.Fatalf("%d of %d seen: %v", len(seen), writers*changes, err)
		}
		for _, item := range w.Items {
			seen[item.Key] = true
		}
	}
}
