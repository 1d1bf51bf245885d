package metrics

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Programming measures how long changes take from what made them to the maps: the slices of a Service say when that
// was (rule E12).
type Programming struct {
	since   time.Time // what happened before is none of our doing
	observe func(family string, took time.Duration)

	mu   sync.Mutex
	seen map[types.NamespacedName]map[string]string // by Service and slice: the time that was counted last
}

// NewProgramming returns a measure of what happens from now on.
func NewProgramming(now time.Time, observe func(family string, took time.Duration)) *Programming {
	return &Programming{since: now, observe: observe, seen: map[types.NamespacedName]map[string]string{}}
}

// Applied takes in that the maps hold a Service as it is; nil: that it is gone.
func (p *Programming) Applied(key types.NamespacedName, service *corev1.Service, slices []*discoveryv1.EndpointSlice, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if service == nil {
		delete(p.seen, key)
		return
	}
	seen := p.seen[key]
	current := make(map[string]string, len(slices))
	for _, slice := range slices {
		text := slice.Annotations[corev1.EndpointsLastChangeTriggerTime]
		if text == "" {
			continue
		}
		current[slice.Name] = text
		trigger, err := time.Parse(time.RFC3339Nano, text)
		if err == nil && seen[slice.Name] != text && trigger.After(p.since) {
			p.observe(string(slice.AddressType), now.Sub(trigger))
		}
	}
	if p.seen[key] = current; len(current) == 0 {
		delete(p.seen, key)
	}
}
