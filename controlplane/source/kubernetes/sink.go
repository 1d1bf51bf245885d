package kubernetes

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-lb/weir/controlplane/store"
)

// object is a pointer to an API object; its zero value is none.
type object interface {
	comparable
	metav1.Object
}

// sink is where a reflector puts the objects of one kind: it hands what changed to the store.
type sink[T object] struct {
	strip  func(T)
	equal  func(old, now T) bool                        // nothing is made of what differs; nil: something is of any difference
	update func(batch store.Batch, now map[store.Key]T) // nil: the object is gone
	listed func()

	known map[store.Key]T
}

// Add takes in a new object.
func (s *sink[T]) Add(added any) error { return s.put(added) }

// Update takes in a changed object.
func (s *sink[T]) Update(changed any) error { return s.put(changed) }

func (s *sink[T]) put(now any) error {
	o, err := s.read(now)
	if err != nil {
		return err
	}
	if s.known == nil {
		s.known = map[store.Key]T{}
	}
	old, known := s.known[keyOf(o)]
	s.known[keyOf(o)] = o
	if known && s.equal != nil && s.equal(old, o) {
		return nil
	}
	s.update(store.Batch{Arrived: time.Now()}, map[store.Key]T{keyOf(o): o})
	return nil
}

// Delete takes out an object.
func (s *sink[T]) Delete(gone any) error {
	o, is := gone.(T)
	if !is {
		return fmt.Errorf("a %T where a %T was to be", gone, o)
	}
	var none T
	delete(s.known, keyOf(o))
	s.update(store.Batch{Arrived: time.Now()}, map[store.Key]T{keyOf(o): none})
	return nil
}

// Replace takes in a complete listing: what it does not have is gone. What is as it was stays the same object, so
// that nothing is done for it.
func (s *sink[T]) Replace(list []any, _ string) error {
	arrived := time.Now()
	now, changed := make(map[store.Key]T, len(list)), map[store.Key]T{}
	for _, item := range list {
		o, err := s.read(item)
		if err != nil {
			return err
		}
		key := keyOf(o)
		old, known := s.known[key]
		switch {
		case known && same(old, o):
			o = old
		case known && s.equal != nil && s.equal(old, o):
		default:
			changed[key] = o
		}
		now[key] = o
	}
	for key := range s.known {
		if _, there := now[key]; !there {
			var none T
			changed[key] = none
		}
	}
	s.known = now
	s.update(store.Batch{Arrived: arrived}, changed)
	s.listed()
	return nil
}

// Resync has nothing to do: the store forgets nothing.
func (s *sink[T]) Resync() error { return nil }

// Transformer strips objects as they come in, so that a long listing is never there whole, and returns what is known already
// instead of the same again.
func (s *sink[T]) Transformer() cache.TransformFunc {
	return func(item any) (any, error) {
		o, err := s.read(item)
		if err != nil {
			return nil, err
		}
		if old, known := s.known[keyOf(o)]; known && same(old, o) {
			return old, nil
		}
		return o, nil
	}
}

func (s *sink[T]) read(item any) (T, error) {
	o, is := item.(T)
	if !is {
		return o, fmt.Errorf("a %T where a %T was to be", item, o)
	}
	s.strip(o)
	return o, nil
}

func keyOf(o metav1.Object) store.Key {
	return store.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// same tells whether two are one object in one version.
func same(a, b metav1.Object) bool {
	return a.GetUID() == b.GetUID() && a.GetResourceVersion() == b.GetResourceVersion() && a.GetResourceVersion() != ""
}
