package devices

import (
	"errors"
	"testing"
)

func join(t *testing.T, e *edges, device, namespace int) uint16 {
	t.Helper()
	id, err := e.join(device, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestEdgesShare gives all devices of a namespace one id, until the last has gone.
func TestEdgesShare(t *testing.T) {
	e := newEdges(0)
	first := join(t, e, 7, 100)
	if second := join(t, e, 8, 100); second != first {
		t.Errorf("two devices of one namespace have the ids %d and %d", first, second)
	}
	if other := join(t, e, 9, 101); other == first {
		t.Errorf("two namespaces have the id %d", other)
	}
	e.leave(7)
	if again := join(t, e, 8, 100); again != first {
		t.Errorf("the id of a namespace changed from %d to %d while it had a device", first, again)
	}
	e.leave(8)
	if later := join(t, e, 10, 100); later == first {
		t.Errorf("the id %d was given to another pod at once", first)
	}
}

// TestEdgesGoRound hands every other id out before one comes back, and never one that is in use, nor 0, nor the one of foreign flows.
func TestEdgesGoRound(t *testing.T) {
	e := newEdges(65533)
	stays := join(t, e, 1, 1)
	seen := map[uint16]bool{stays: true, 0: true, 65535: true}
	for i := range 65533 {
		id := join(t, e, 2, 1000+i)
		if seen[id] {
			t.Fatalf("id %d comes again after %d others", id, i)
		}
		seen[id] = true
		e.leave(2)
	}
	if again := join(t, e, 2, 2); !seen[again] || again == stays || again == 0 || again == 65535 {
		t.Errorf("after all were used, the id is %d", again)
	}
}

// TestEdgesFull refuses when all ids are in use.
func TestEdgesFull(t *testing.T) {
	e := newEdges(0)
	for i := range 65534 {
		join(t, e, i+1, i)
	}
	if id, err := e.join(70000, 70000); !errors.Is(err, errNoEdgeID) {
		t.Errorf("id %d, error %v; want errNoEdgeID", id, err)
	}
}

// TestEdgesRestore keeps the ids of a predecessor, but not for two namespaces.
func TestEdgesRestore(t *testing.T) {
	e := newEdges(40)
	e.restore(7, 100, 12)
	e.restore(8, 101, 12)
	if id := join(t, e, 7, 100); id != 12 {
		t.Errorf("id %d, had 12", id)
	}
	if id := join(t, e, 8, 101); id != 41 {
		t.Errorf("id %d, want the next one, 41", id)
	}
}

// TestEdgesMove gives a device that comes to lead to another namespace the id of that one.
func TestEdgesMove(t *testing.T) {
	e := newEdges(0)
	first := join(t, e, 7, 100)
	if id := join(t, e, 7, 101); id == first {
		t.Errorf("the device kept id %d of the namespace that it led to", id)
	}
	if len(e.ids) != 1 || len(e.used) != 1 {
		t.Errorf("%d namespaces and %d ids are in use, want one of each", len(e.ids), len(e.used))
	}
}
