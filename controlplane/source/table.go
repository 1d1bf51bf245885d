package source

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// objectKey identifies an object.
type objectKey struct {
	kind string
	store.Key
}

// String names the object as problems do.
func (k objectKey) String() string {
	if k.Namespace == "" {
		return k.kind + " " + k.Name
	}
	return k.kind + " " + k.Key.String()
}

func keyOf(object metav1.Object) objectKey {
	return objectKey{kindOf(object), store.Key{Namespace: object.GetNamespace(), Name: object.GetName()}}
}

// located is an object in its place.
type located struct {
	object   metav1.Object
	file     string
	position int // among the file's objects
	document int
}

// table holds the objects of all files. An object that stands in several places is taken from the first.
type table struct {
	places    map[objectKey][]located // in order of file and position
	delivered map[objectKey]metav1.Object
	mirrored  map[store.Key][]*discoveryv1.EndpointSlice // of the Endpoints of that name
}

func newTable() *table {
	return &table{
		places:    map[objectKey][]located{},
		delivered: map[objectKey]metav1.Object{},
		mirrored:  map[store.Key][]*discoveryv1.EndpointSlice{},
	}
}

// replace takes in what a file says now in place of what it said before, and returns what that changes.
func (t *table) replace(old, now []located, arrived time.Time) store.Batch {
	touched := map[objectKey]struct{}{}
	for _, place := range old {
		key := keyOf(place.object)
		touched[key] = struct{}{}
		t.places[key] = slices.DeleteFunc(t.places[key], func(p located) bool { return p.file == place.file })
	}
	for _, place := range now {
		key := keyOf(place.object)
		touched[key] = struct{}{}
		at, _ := slices.BinarySearchFunc(t.places[key], place, comparePlaces)
		t.places[key] = slices.Insert(t.places[key], at, place)
	}
	batch := store.Batch{
		Arrived:  arrived,
		Services: map[store.Key]*corev1.Service{},
		Slices:   map[store.Key]*discoveryv1.EndpointSlice{},
		Nodes:    map[string]*corev1.Node{},
		Ranges:   map[string]*networkingv1.ServiceCIDR{},

		Pods:       map[store.Key]*corev1.Pod{},
		Namespaces: map[string]*corev1.Namespace{},
	}
	for key := range touched {
		t.deliver(key, &batch)
	}
	return batch
}

func comparePlaces(a, b located) int {
	return cmp.Or(strings.Compare(a.file, b.file), cmp.Compare(a.position, b.position))
}

// deliver adds an object to the batch if it is another than the store has.
func (t *table) deliver(key objectKey, batch *store.Batch) {
	var now metav1.Object
	if places := t.places[key]; len(places) > 0 {
		now = places[0].object
	} else {
		delete(t.places, key)
	}
	if t.delivered[key] == now {
		return
	}
	t.delivered[key] = now
	if now == nil {
		delete(t.delivered, key)
	}
	switch key.kind {
	case "Service":
		batch.Services[key.Key], _ = now.(*corev1.Service)
		t.remirror(key.Key, batch)
	case "Endpoints":
		t.remirror(key.Key, batch)
	case "Node":
		batch.Nodes[key.Name], _ = now.(*corev1.Node)
	case "ServiceCIDR":
		batch.Ranges[key.Name], _ = now.(*networkingv1.ServiceCIDR)
	case "Pod":
		batch.Pods[key.Key], _ = now.(*corev1.Pod)
	case "Namespace":
		batch.Namespaces[key.Name], _ = now.(*corev1.Namespace)
	case "EndpointSlice":
		batch.Slices[key.Key], _ = now.(*discoveryv1.EndpointSlice)
	}
}

// remirror makes the slices of Endpoints anew.
func (t *table) remirror(key store.Key, batch *store.Batch) {
	for _, slice := range t.mirrored[key] {
		batch.Slices[store.Key{Namespace: slice.Namespace, Name: slice.Name}] = nil
	}
	delete(t.mirrored, key)
	from, service := t.pair(key)
	if !mirrors(from, service) {
		return
	}
	t.mirrored[key] = mirror(from)
	for _, slice := range t.mirrored[key] {
		batch.Slices[store.Key{Namespace: slice.Namespace, Name: slice.Name}] = slice
	}
}

// pair returns the Endpoints and the Service of one name; either may be nil.
func (t *table) pair(key store.Key) (*endpoints, *corev1.Service) {
	from, _ := t.delivered[objectKey{"Endpoints", key}].(*endpoints)
	service, _ := t.delivered[objectKey{"Service", key}].(*corev1.Service)
	return from, service
}

// problems lists objects that stand in several places, and Endpoints that nothing is made of.
func (t *table) problems() []compile.Problem {
	var problems []compile.Problem
	served := t.servedBySlices()
	for key, places := range t.places {
		for _, place := range places[1:] {
			problems = append(problems, compile.Problem{
				Object: key.String(),
				Reason: "ObjectDuplicate",
				Message: fmt.Sprintf("%s is also in %s, which is used: remove one of them",
					place, places[0]),
			})
		}
		if key.kind != "Endpoints" || served[key.Key] {
			continue
		}
		if _, service := t.pair(key.Key); service != nil && len(service.Spec.Selector) > 0 {
			problems = append(problems, compile.Problem{
				Object:  key.String(),
				Reason:  "EndpointsNotMirrored",
				Message: "its Service has a selector, so its endpoints are not read from here: give EndpointSlices, or take the selector out",
			})
		}
	}
	return problems
}

// servedBySlices returns the Services that EndpointSlices in the manifests name.
func (t *table) servedBySlices() map[store.Key]bool {
	served := map[store.Key]bool{}
	for _, object := range t.delivered {
		if slice, is := object.(*discoveryv1.EndpointSlice); is {
			served[store.Key{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}] = true
		}
	}
	return served
}

// Parse returns the objects that a directory with these files has for the store, and what is wrong with the
// files. It is what a Manifests source makes of them, without the directory.
func Parse(files map[string][]byte) (store.Batch, []compile.Problem) {
	var places []located
	var problems []compile.Problem
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := file{name: name}
		more, wrong := f.parse(files[name])
		places, problems = append(places, more...), append(problems, wrong...)
	}
	table := newTable()
	batch := table.replace(nil, places, time.Time{})
	return batch, append(problems, table.problems()...)
}

// String says where an object stands.
func (l located) String() string { return fmt.Sprintf("document %d of %s", l.document, l.file) }
