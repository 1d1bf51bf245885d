package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// limit is how long anything in these tests may take.
const limit = 20 * time.Second

// world is a source on an API server in memory.
type world struct {
	*testing.T
	client *fake.Clientset
	store  *store.Store
	source *Source
}

func newWorld(t *testing.T, proxyName string, objects ...runtime.Object) *world {
	w := &world{T: t, client: fake.NewClientset(objects...), store: store.New(time.Millisecond)}
	w.source = New(Options{Client: w.client, Store: w.store, NodeName: "node1", ProxyName: proxyName, Log: zap.NewNop()})
	return w
}

// run runs the source until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(w.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = w.source.Run(ctx) })
	w.Cleanup(func() { cancel(); running.Wait() })
}

// next waits for work, or fails.
func (w *world) next() store.Work {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), limit)
	defer cancel()
	work, err := w.store.Next(ctx)
	if err != nil {
		w.Fatal(err)
	}
	return work
}

// idle expects no work for a moment.
func (w *world) idle() {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 100*time.Millisecond)
	defer cancel()
	if work, err := w.store.Next(ctx); err == nil {
		w.Fatalf("work, where there was to be none: %+v", work)
	}
}

// problem waits for a problem with this reason.
func (w *world) problem(reason string) compile.Problem {
	w.Helper()
	var problems []compile.Problem
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		problems = w.source.Problems()
		at := slices.IndexFunc(problems, func(p compile.Problem) bool { return p.Reason == reason })
		if at >= 0 {
			return problems[at]
		}
	}
	w.Fatalf("no problem %s: %v", reason, problems)
	return compile.Problem{}
}

func service(name, version string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "1", ResourceVersion: version},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1"},
	}
}

func slice(service string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
	}
}

func node(name string, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, address := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address})
	}
	return n
}

// TestS09 holds back one kind after the other: there is no work before all have been listed.
func TestS09_NothingBeforeEverythingIsListed(t *testing.T) {
	for _, late := range []resource{services, endpointSlices, nodes} {
		t.Run(late.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "", service("web", "1"), slice("web"), node("node1"))
			release := make(chan struct{})
			w.client.PrependReactor("list", late.name, func(clienttesting.Action) (bool, runtime.Object, error) {
				<-release
				return false, nil, nil
			})
			w.run()
			w.idle()
			close(release)
			work := w.next()
			if len(work.Items) != 1 || work.Items[0].Service == nil || len(work.Items[0].Slices) != 1 || len(work.Nodes) != 1 {
				t.Errorf("the first work is %+v, want everything", work)
			}
		})
	}
}

// TestS03S04 looks at what the server is asked for.
func TestS03S04_Selectors(t *testing.T) {
	for proxyName, want := range map[string]string{
		"":      "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name",
		"other": "!service.kubernetes.io/headless,service.kubernetes.io/service-proxy-name=other",
	} {
		w := newWorld(t, proxyName, node("node1"))
		w.run()
		w.next()
		for _, action := range w.client.Actions() {
			list, is := action.(clienttesting.ListActionImpl)
			if !is || list.Resource.Resource == nodes.name {
				continue
			}
			want := want
			if list.Resource.Resource != endpointSlices.name {
				want = "" // the addresses of all Services have to be known (rule C05)
			}
			if got := list.ListRestrictions.Labels.String(); got != want {
				t.Errorf("%s are listed with selector %q, want %q", list.Resource.Resource, got, want)
			}
		}
	}
}

// TestChanges follows additions, changes and removals of each kind.
func TestChanges(t *testing.T) {
	w := newWorld(t, "", node("node1"))
	w.run()
	w.next()
	// The server in memory has no versions: what happens before it is watched is lost.
	for len(w.client.Actions()) < 8 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	api, slices := w.client.CoreV1().Services("default"), w.client.DiscoveryV1().EndpointSlices("default")
	step := func(what string, do func() error, holds func(store.Item) bool) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		work := w.next()
		if len(work.Items) != 1 || !holds(work.Items[0]) {
			t.Fatalf("%s: work is %+v", what, work)
		}
	}
	ctx := t.Context()
	step("create Service", func() error { _, err := api.Create(ctx, service("web", "1"), metav1.CreateOptions{}); return err },
		func(i store.Item) bool { return i.Service != nil && len(i.Slices) == 0 })
	step("create slice", func() error { _, err := slices.Create(ctx, slice("web"), metav1.CreateOptions{}); return err },
		func(i store.Item) bool { return i.Service != nil && len(i.Slices) == 1 })
	step("delete slice", func() error { return slices.Delete(ctx, "web-x", metav1.DeleteOptions{}) },
		func(i store.Item) bool { return i.Service != nil && len(i.Slices) == 0 })
	step("delete Service", func() error { return api.Delete(ctx, "web", metav1.DeleteOptions{}) },
		func(i store.Item) bool { return i.Service == nil })
}

// TestRelist is mark and sweep: after a lost connection, what is not in the new list is gone, and what has not
// changed is the same object, for which nothing is done.
func TestRelist(t *testing.T) {
	var changed map[store.Key]*corev1.Service
	s := &sink[*corev1.Service]{
		strip:  stripService,
		update: func(_ store.Batch, now map[store.Key]*corev1.Service) { changed = now },
		listed: func() {},
	}
	list := func(services ...*corev1.Service) {
		t.Helper()
		items := make([]any, len(services))
		for i := range services {
			items[i] = services[i]
		}
		if err := s.Replace(items, ""); err != nil {
			t.Fatal(err)
		}
	}
	list(service("same", "1"), service("changed", "1"), service("gone", "1"))
	if len(changed) != 3 {
		t.Fatalf("the first list changes %v, want all three", changed)
	}
	list(service("same", "1"), service("changed", "2"), service("new", "1"))
	for name, want := range map[string]string{"changed": "2", "new": "1", "gone": ""} {
		got, there := changed[store.Key{Namespace: "default", Name: name}]
		if !there || (got == nil) != (want == "") || got != nil && got.ResourceVersion != want {
			t.Errorf("%s: changed to %v (%v), want version %q", name, got, there, want)
		}
	}
	if len(changed) != 3 {
		t.Errorf("changed: %v, want nothing but changed, new and gone", changed)
	}
	held := s.known[store.Key{Namespace: "default", Name: "same"}]
	if streamed, err := s.Transformer()(service("same", "1")); err != nil || streamed != any(held) {
		t.Errorf("what is as it was is there twice while a listing is streamed (%v)", err)
	}
	if streamed, err := s.Transformer()(service("same", "2")); err != nil || streamed == any(held) {
		t.Errorf("another version is taken for the one that is known (%v)", err)
	}
}

// TestC05 follows the ServiceCIDRs, and does without them where the server has none.
func TestC05_ServiceCIDRs(t *testing.T) {
	object := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}}}
	w := newWorld(t, "", node("node1"), object)
	w.run()
	if work := w.next(); !work.RangesChanged || len(work.Ranges) != 1 || work.Ranges[0].Spec.CIDRs[0] != "10.96.0.0/16" {
		t.Errorf("the work is %+v, want the range", work)
	}
	without := newWorld(t, "", node("node1"))
	without.client.PrependReactor("*", serviceCIDRs.name, func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Group: serviceCIDRs.group, Resource: serviceCIDRs.name}, "")
	})
	without.run()
	without.next()
	if problems := without.source.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}

// TestPods follows the Pods of the node and the Namespaces with the label, where that is asked for.
func TestPods(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "mesh", Name: "proxy", UID: "7", Annotations: map[string]string{compile.LabelSocketLB: "off"}},
		Spec:       corev1.PodSpec{NodeName: "node1", Containers: []corev1.Container{{Name: "large"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.1.1.5", PodIPs: []corev1.PodIP{{IP: "10.1.1.5"}}},
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mesh", Labels: map[string]string{compile.LabelSocketLB: "on"}}}
	w := newWorld(t, "", node("node1"), pod, namespace)
	w.source = New(Options{Client: w.client, Store: w.store, NodeName: "node1", Pods: true, Log: zap.NewNop()})
	w.run()
	w.next()
	<-w.store.PodsChanged()
	got, byName := w.store.Pods()
	want := pod.DeepCopy()
	want.Spec.Containers = nil
	if len(got) != 1 || byName["mesh"] == nil {
		t.Fatalf("Pods %v, Namespaces %v", got, byName)
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Error(diff)
	}
	for _, action := range w.client.Actions() {
		list, is := action.(clienttesting.ListActionImpl)
		if is && list.Resource.Resource == pods.name && list.ListRestrictions.Fields.String() != "spec.nodeName=node1" {
			t.Errorf("Pods are listed by %s: those of all nodes are too many", list.ListRestrictions.Fields)
		}
		if is && list.Resource.Resource == namespaces.name && list.ListRestrictions.Labels.String() != compile.LabelSocketLB {
			t.Errorf("Namespaces are listed by %s", list.ListRestrictions.Labels)
		}
	}

	without := newWorld(t, "", node("node1"), pod, namespace)
	without.run()
	without.next()
	if got, byName := without.store.Pods(); len(got)+len(byName) > 0 {
		t.Errorf("Pods %v and Namespaces %v, where nobody has asked", got, byName)
	}
}

// TestForbidden names verb and resource; only Services and their endpoints cannot be done without.
func TestForbidden(t *testing.T) {
	for _, test := range []struct {
		resource resource
		serves   bool
	}{{services, false}, {endpointSlices, false}, {nodes, true}, {serviceCIDRs, true}, {pods, true}, {namespaces, true}} {
		t.Run(test.resource.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "", service("web", "1"), slice("web"), node("node1"))
			w.source = New(Options{Client: w.client, Store: w.store, NodeName: "node1", Pods: true, Log: zap.NewNop()})
			w.client.PrependReactor("list", test.resource.name, func(clienttesting.Action) (bool, runtime.Object, error) {
				gr := schema.GroupResource{Group: test.resource.group, Resource: test.resource.name}
				return true, nil, apierrors.NewForbidden(gr, "", errors.New("no RBAC policy matched"))
			})
			w.run()
			problem := w.problem(reasonForbidden)
			if want := "list " + test.resource.String(); !strings.Contains(problem.Message, want) {
				t.Errorf("the problem does not say %q: %s", want, problem.Message)
			}
			if w.source.Failure() == "" {
				t.Error("the source says that all is well")
			}
			if test.serves {
				w.next()
			} else {
				w.idle()
			}
		})
	}
}

// TestUnreachable keeps trying and says so; the problem goes when the server is back.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, "", node("node1"))
	var mu sync.Mutex
	down := true
	w.client.PrependReactor("list", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		return down, nil, fmt.Errorf("Get \"https://10.0.0.1:6443/api\": %w", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	})
	w.run()
	problem := w.problem(reasonUnreachable)
	if strings.Contains(problem.Message, "https://") {
		t.Errorf("the problem names a URL, which differs between requests: %s", problem.Message)
	}
	mu.Lock()
	down = false
	mu.Unlock()
	w.next()
	for deadline := time.Now().Add(limit); w.source.Failure() != ""; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still: %s", w.source.Failure())
		}
	}
}

// TestRefusedWatchListsAnew: the reflector would go on where it was.
func TestRefusedWatchListsAnew(t *testing.T) {
	refused := fmt.Errorf("watch: %w", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	if err := lost(refused); errors.Is(err, syscall.ECONNREFUSED) || err.Error() != refused.Error() {
		t.Errorf("got %v", err)
	}
	if other := errors.New("other"); !errors.Is(lost(other), other) {
		t.Error("another error is another one")
	}
}

// TestNodeNotFound says what the node may be called.
func TestNodeNotFound(t *testing.T) {
	mine := ""
	for address := range localAddresses() {
		mine = address.String()
	}
	if mine == "" {
		t.Skip("this machine has no address")
	}
	w := newWorld(t, "", node("other", "192.0.2.77"), node("this-machine", mine))
	w.client.PrependReactor("list", "nodes", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if strings.Contains(action.(clienttesting.ListAction).GetListRestrictions().Fields.String(), "node1") {
			return true, &corev1.NodeList{}, nil // the server in memory does not select by fields
		}
		return false, nil, nil
	})
	w.run()
	w.next() // Services are served all the same
	problem := w.problem("NodeNotFound")
	if problem.Object != "Node node1" || !strings.Contains(problem.Message, "--node-name this-machine") {
		t.Errorf("got %+v", problem)
	}
}

// TestDialer tries the endpoints in turn, beginning with the one that answered last.
func TestDialer(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	there, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	gone.Close()
	d := &dialer{endpoints: []netip.AddrPort{netip.MustParseAddrPort(gone.Addr().String()), netip.MustParseAddrPort(there.Addr().String())}}
	for range 2 {
		connection, err := d.dial(t.Context(), "tcp", "10.96.0.1:443")
		if err != nil {
			t.Fatal(err)
		}
		connection.Close()
		if d.last != 1 {
			t.Errorf("begins with endpoint %d, want the one that answered", d.last)
		}
	}
	there.Close()
	if _, err := d.dial(t.Context(), "tcp", ""); err == nil {
		t.Error("connected to nobody")
	}
}
