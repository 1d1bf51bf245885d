// Package store holds the Kubernetes objects that services are made of, and knows which Services have to
// be looked at again because something they depend on has changed.
//
// It is level-triggered: it keeps what is, not what happened. However many changes arrive while a Service
// waits, its consumer gets the Service once, as it is now.
package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Key names a namespaced object.
type Key = types.NamespacedName

// Batch is a set of changes that its consumer sees together. A nil object is a removal. Objects belong to
// the store once they are handed over, and are never modified again by anybody.
type Batch struct {
	Arrived  time.Time // when the source heard of the changes; latency is measured from here
	Services map[Key]*corev1.Service
	Slices   map[Key]*discoveryv1.EndpointSlice
	Nodes    map[string]*corev1.Node
	Ranges   map[string]*networkingv1.ServiceCIDR

	// No service is made of these: Pods and Namespaces hands them out.
	Pods       map[Key]*corev1.Pod
	Namespaces map[string]*corev1.Namespace
}

// Empty tells whether the batch changes nothing.
func (b Batch) Empty() bool {
	return len(b.Services)+len(b.Slices)+len(b.Nodes)+len(b.Ranges)+len(b.Pods)+len(b.Namespaces) == 0
}

// Item is a Service with all that belongs to it.
type Item struct {
	Key     Key
	Service *corev1.Service              // nil: there is none (any more)
	Slices  []*discoveryv1.EndpointSlice // in order of their names
	Arrived time.Time                    // of the oldest change that the consumer has not seen; zero if none
}

// Work is what changed since the consumer last asked.
type Work struct {
	Items        []Item         // in order of their keys
	Nodes        []*corev1.Node // all there are, in order of their names, where one changed
	NodesArrived time.Time      // of the oldest change of a node; zero if none changed

	Ranges        []*networkingv1.ServiceCIDR // all there are, in order of their names, where one changed
	RangesChanged bool
	Changes       Changes // up to and with this work
}

// Changes are how many changes have been taken in.
type Changes struct{ Services, Slices uint64 }

// Less returns the changes without the first ones.
func (c Changes) Less(first Changes) Changes {
	return Changes{Services: c.Services - first.Services, Slices: c.Slices - first.Slices}
}

// Store is safe for concurrent use. Any number may write; one consumer calls Next.
type Store struct {
	gather time.Duration

	mu       sync.Mutex
	services map[Key]*corev1.Service
	slices   map[Key]*discoveryv1.EndpointSlice
	byOwner  map[Key][]*discoveryv1.EndpointSlice // by Service, in order of their names: most have one
	nodes    map[string]*corev1.Node
	ranges   map[string]*networkingv1.ServiceCIDR
	unowned  map[Key]struct{} // slices that name no Service

	pods        map[Key]*corev1.Pod
	namespaces  map[string]*corev1.Namespace
	podsChanged chan struct{} // holds one token when either has changed

	dirty       map[Key]time.Time // Services to look at again -> arrival of the oldest change
	nodesDirty  time.Time
	rangesDirty time.Time
	handed      time.Time // arrival of the oldest change that Next returned, until Next is called again
	synced      bool
	started     bool          // Next has returned work once
	taken       time.Time     // when Next last returned work
	wake        chan struct{} // holds one token when Next should look again

	changes Changes
}

// New returns an empty store. Changes that follow a batch of work within gather are collected for that
// long, so that a stream of changes costs a bounded number of batches; a change on its own waits for nothing.
func New(gather time.Duration) *Store {
	return &Store{
		gather:   gather,
		services: map[Key]*corev1.Service{},
		slices:   map[Key]*discoveryv1.EndpointSlice{},
		byOwner:  map[Key][]*discoveryv1.EndpointSlice{},
		nodes:    map[string]*corev1.Node{},
		ranges:   map[string]*networkingv1.ServiceCIDR{},
		unowned:  map[Key]struct{}{},
		dirty:    map[Key]time.Time{},
		wake:     make(chan struct{}, 1),

		pods:        map[Key]*corev1.Pod{},
		namespaces:  map[string]*corev1.Namespace{},
		podsChanged: make(chan struct{}, 1),
	}
}

// Update takes in a batch of changes.
func (s *Store) Update(b Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, service := range b.Services {
		s.setService(key, service, b.Arrived)
	}
	for key, slice := range b.Slices {
		s.setSlice(key, slice, b.Arrived)
	}
	for name, node := range b.Nodes {
		s.setNode(name, node, b.Arrived)
	}
	if len(b.Ranges) > 0 {
		set(s.ranges, b.Ranges)
		s.rangesDirty = earlier(s.rangesDirty, b.Arrived)
	}
	set(s.pods, b.Pods)
	set(s.namespaces, b.Namespaces)
	if len(b.Pods)+len(b.Namespaces) > 0 {
		s.tellPods()
	}
	s.signal()
}

// Synced says that the first complete listing of every kind is in. Before it, Next returns nothing, so that
// no service is taken for gone because its source has not been read yet (rule S09).
func (s *Store) Synced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = true
	s.signal()
	s.tellPods()
}

// PodsChanged holds a token when Pods or Namespaces have changed, and when the first listing is complete.
func (s *Store) PodsChanged() <-chan struct{} { return s.podsChanged }

// Pods returns all Pods in any order, and all Namespaces by name.
func (s *Store) Pods() ([]*corev1.Pod, map[string]*corev1.Namespace) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.pods)), maps.Clone(s.namespaces)
}

// tellPods says that Pods or Namespaces have changed, once it is known which there are.
func (s *Store) tellPods() {
	if !s.synced {
		return
	}
	select {
	case s.podsChanged <- struct{}{}:
	default:
	}
}

// Next waits for work and takes it. The first is everything there is, even if that is nothing: what an
// earlier agent left may have to go. It returns the context's error when that ends.
func (s *Store) Next(ctx context.Context) (Work, error) {
	s.done()
	for {
		ready, wait := s.ready()
		if ready && wait <= 0 {
			return s.take(), nil
		}
		if err := s.pause(ctx, ready, wait); err != nil {
			return Work{}, fmt.Errorf("wait for changes: %w", err)
		}
	}
}

// All returns every Service, in order of their keys, without taking any work.
func (s *Store) All() []Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := make([]Item, 0, len(s.services))
	for key := range s.services {
		items = append(items, s.item(key))
	}
	return sorted(items)
}

// OnNodes returns the Services that have an endpoint on one of those nodes, in order of their keys, without taking any work.
// It looks at all endpoints.
func (s *Store) OnNodes(names map[string]struct{}) []Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []Item
	for key, list := range s.byOwner {
		if _, there := s.services[key]; there && slices.ContainsFunc(list, func(slice *discoveryv1.EndpointSlice) bool { return isOn(slice, names) }) {
			items = append(items, s.item(key))
		}
	}
	return sorted(items)
}

// isOn tells whether a slice has an endpoint on one of those nodes.
func isOn(slice *discoveryv1.EndpointSlice, names map[string]struct{}) bool {
	return slices.ContainsFunc(slice.Endpoints, func(e discoveryv1.Endpoint) bool {
		_, is := names[ptr.Deref(e.NodeName, "")]
		return is
	})
}

// Get returns one Service.
func (s *Store) Get(key Key) Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.item(key)
}

// Slice returns an EndpointSlice; nil if there is none.
func (s *Store) Slice(key Key) *discoveryv1.EndpointSlice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slices[key]
}

// Node returns a node by its name; nil if there is none.
func (s *Store) Node(name string) *corev1.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[name]
}

// Changes returns how many changes of Services and slices have been taken in.
func (s *Store) Changes() Changes {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes
}

// Oldest returns the arrival of the oldest change that its consumer has not taken note of, or false if
// there is none: what Next returned counts until Next is called again.
func (s *Store) Oldest() (arrived time.Time, waiting bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := earlier(s.handed, s.waiting())
	return oldest, !oldest.IsZero()
}

// waiting returns the arrival of the oldest change that waits for Next; zero if there is none.
func (s *Store) waiting() time.Time {
	oldest := earlier(s.nodesDirty, s.rangesDirty)
	for _, t := range s.dirty {
		oldest = earlier(oldest, t)
	}
	return oldest
}

// done notes that the consumer has dealt with what it has.
func (s *Store) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handed = time.Time{}
}

// Problems lists the objects that nothing can be made of: EndpointSlices that name no Service (rule S11).
func (s *Store) Problems() []compile.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	problems := make([]compile.Problem, 0, len(s.unowned))
	for key := range s.unowned {
		problems = append(problems, compile.Problem{
			Object:  "EndpointSlice " + key.String(),
			Reason:  "ServiceNameMissing",
			Message: "its label " + discoveryv1.LabelServiceName + " is missing, so it belongs to no Service: set the label",
		})
	}
	slices.SortFunc(problems, func(a, b compile.Problem) int { return strings.Compare(a.Object, b.Object) })
	return problems
}

// set takes in objects, of which nil ones are gone.
func set[K comparable, T any](held, changed map[K]*T) {
	for key, object := range changed {
		if object == nil {
			delete(held, key)
			continue
		}
		held[key] = object
	}
}

func (s *Store) setService(key Key, service *corev1.Service, arrived time.Time) {
	if s.services[key] == service {
		return
	}
	s.changes.Services++
	if service == nil {
		delete(s.services, key)
	} else {
		s.services[key] = service
	}
	s.mark(key, arrived)
}

func (s *Store) setSlice(key Key, slice *discoveryv1.EndpointSlice, arrived time.Time) {
	old := s.slices[key]
	if old == slice {
		return
	}
	s.changes.Slices++
	s.dropSlice(key, old, arrived)
	if slice == nil {
		return
	}
	s.slices[key] = slice
	owner, owned := ownerOf(slice)
	if !owned {
		s.unowned[key] = struct{}{}
		return
	}
	at, _ := slices.BinarySearchFunc(s.byOwner[owner], slice.Name, byName)
	s.byOwner[owner] = slices.Insert(s.byOwner[owner], at, slice)
	s.mark(owner, arrived)
}

// dropSlice forgets a slice, which may be nil.
func (s *Store) dropSlice(key Key, slice *discoveryv1.EndpointSlice, arrived time.Time) {
	if slice == nil {
		return
	}
	delete(s.slices, key)
	delete(s.unowned, key)
	owner, owned := ownerOf(slice)
	if !owned {
		return
	}
	at, there := slices.BinarySearchFunc(s.byOwner[owner], slice.Name, byName)
	if there {
		s.byOwner[owner] = slices.Delete(s.byOwner[owner], at, at+1)
	}
	if len(s.byOwner[owner]) == 0 {
		delete(s.byOwner, owner)
	}
	s.mark(owner, arrived)
}

func (s *Store) setNode(name string, node *corev1.Node, arrived time.Time) {
	if s.nodes[name] == node {
		return
	}
	if node == nil {
		delete(s.nodes, name)
	} else {
		s.nodes[name] = node
	}
	s.nodesDirty = earlier(s.nodesDirty, arrived)
}

// ownerOf returns the Service that a slice belongs to.
func ownerOf(slice *discoveryv1.EndpointSlice) (owner Key, owned bool) {
	name := slice.Labels[discoveryv1.LabelServiceName]
	return Key{Namespace: slice.Namespace, Name: name}, name != ""
}

// mark records that a Service has to be looked at.
func (s *Store) mark(key Key, arrived time.Time) {
	s.dirty[key] = earlier(s.dirty[key], arrived)
}

// earlier returns the earlier of two times, of which a zero one does not count.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (s *Store) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// ready tells whether there is work, and for how long more is to be gathered before it is taken.
func (s *Store) ready() (ready bool, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.synced || s.started && len(s.dirty) == 0 && s.nodesDirty.IsZero() && s.rangesDirty.IsZero() {
		return false, 0
	}
	return true, time.Until(s.taken.Add(s.gather))
}

// pause sleeps while more is gathered, or until something happens.
func (s *Store) pause(ctx context.Context, ready bool, wait time.Duration) error {
	wake, elapsed := s.wake, (<-chan time.Time)(nil)
	if ready {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		wake, elapsed = nil, timer.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wake:
	case <-elapsed:
	}
	return nil
}

// take returns all the work there is.
func (s *Store) take() Work {
	s.mu.Lock()
	defer s.mu.Unlock()
	work := Work{NodesArrived: s.nodesDirty, Changes: s.changes}
	for key := range s.dirty {
		work.Items = append(work.Items, s.item(key))
	}
	sorted(work.Items)
	if !s.nodesDirty.IsZero() {
		work.Nodes = inOrder(s.nodes)
	}
	if !s.rangesDirty.IsZero() {
		work.Ranges, work.RangesChanged = inOrder(s.ranges), true
	}
	s.handed = s.waiting()
	s.dirty = map[Key]time.Time{} // one that is cleared keeps the room that the first listing took
	s.nodesDirty, s.rangesDirty = time.Time{}, time.Time{}
	s.taken, s.started = time.Now(), true
	return work
}

func (s *Store) item(key Key) Item {
	return Item{Key: key, Service: s.services[key], Slices: slices.Clone(s.byOwner[key]), Arrived: s.dirty[key]}
}

// byName orders EndpointSlices.
func byName(slice *discoveryv1.EndpointSlice, name string) int {
	return strings.Compare(slice.Name, name)
}

// inOrder returns objects in order of their names.
func inOrder[T any](objects map[string]T) []T {
	list := make([]T, 0, len(objects))
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		list = append(list, objects[name])
	}
	return list
}

// sorted orders items by key, in place.
func sorted(items []Item) []Item {
	slices.SortFunc(items, func(a, b Item) int {
		return cmp.Or(strings.Compare(a.Key.Namespace, b.Key.Namespace), strings.Compare(a.Key.Name, b.Key.Name))
	})
	return items
}
