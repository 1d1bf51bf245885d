package apply

import (
	"testing"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/maps"
)

// Maglev tables have the size that was asked for; an agent with another one makes them anew, and lists stay.
func TestMaglevTableSize(t *testing.T) {
	set := newSet(t, smallSizes())
	service, single := web(1, 1, 2, 3), web(2, 1)
	for _, step := range []struct {
		size, outside uint32
		writes        bool
	}{{509, 509, true}, {509, 509, false}, {0, 251, true}, {1021, 1021, true}, {1021, 1021, false}} {
		a, err := New(set, zap.NewNop(), MaglevSize(step.size))
		if err != nil {
			t.Fatal(err)
		}
		mustSync(t, a, service, single)
		current := a.state.services[service.ID].current.value
		if current.Inside.Count != 3 || current.Outside.Count != step.outside {
			t.Errorf("size %d: the tables have %d and %d slots, want 3 and %d", step.size, current.Inside.Count, current.Outside.Count, step.outside)
		}
		if count := a.state.services[single.ID].current.value.Outside.Count; count != 1 {
			t.Errorf("size %d: the table of one backend has %d slots", step.size, count)
		}
		if (a.Writes() > 0) != step.writes {
			t.Errorf("size %d: %d writes", step.size, a.Writes())
		}
	}
	if maps.IsMaglevSize(512) || maps.IsMaglevSize(241) || !maps.IsMaglevSize(65521) {
		t.Error("only primes from 251 on are sizes")
	}
}
