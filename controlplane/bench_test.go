package controlplane

import (
	"fmt"
	"testing"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// nowhere is an Applier that does nothing.
type nowhere struct{}

func (nowhere) Sync([]compile.Service) error { return nil }

func (nowhere) Apply([]compile.Service, []compile.ID) error { return nil }

func (nowhere) Problems() []compile.Problem { return nil }

// loaded returns a controller that has taken in Services of ten endpoints each.
func loaded(b testing.TB, services int) (*store.Store, *Controller) {
	s := store.New(0)
	for i := range services {
		s.Update(batchOf(numbered(i, 0)...))
	}
	s.Synced()
	c := New(Options{Store: s, Applier: nowhere{}, NodeName: "n1", Log: zap.NewNop()})
	step(b, c)
	return s, c
}

// step does once what Run does for ever.
func step(b testing.TB, c *Controller) {
	work, more := c.next(b.Context())
	if !more {
		b.Fatal("no work")
	}
	c.take(work)
	c.write()
}

// numbered returns the Service of a number, with endpoints that depend on another.
func numbered(i, round int) []metav1.Object {
	name := fmt.Sprintf("s%d", i)
	var addresses []string
	for e := range 10 {
		addresses = append(addresses, fmt.Sprintf("10.%d.%d.%d", 128+e+10*(round%2), i>>8, i&255))
	}
	return []metav1.Object{newService(name, fmt.Sprintf("10.96.%d.%d", i>>8, i&255), 1), newSlice(name, addresses...)}
}

// BenchmarkEndpointChange is one Service's endpoints changing, from the store to the applier's door. It must not
// depend on how many Services there are.
func BenchmarkEndpointChange(b *testing.B) {
	for _, services := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			s, c := loaded(b, services)
			round := 0
			for b.Loop() {
				round++
				s.Update(batchOf(numbered(services/2, round)...))
				step(b, c)
			}
		})
	}
}

// BenchmarkStart is 10,000 Services of ten endpoints, from the store to the applier's door.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		s := store.New(0)
		for i := range 10000 {
			s.Update(batchOf(numbered(i, 0)...))
		}
		s.Synced()
		c := New(Options{Store: s, Applier: nowhere{}, NodeName: "n1", Log: zap.NewNop()})
		b.StartTimer()
		step(b, c)
	}
}
