package maps

import "testing"

// Milestones are no flows: nobody who reads a table sees them. A full map has none, and that is no failure.
func TestMilestones(t *testing.T) {
	sizes := tinySizes()
	sizes.FlowsIPv4, sizes.FlowsIPv6 = 4*milestoneEvery, 2*milestoneEvery
	set, err := New(sizes)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	keys, flows := make([]FlowKey, 2*milestoneEvery), make([]Flow, 2*milestoneEvery)
	for n := range keys {
		keys[n] = milestone(uint32(n))
		keys[n].Protocol = 17
	}
	if err := set.FlowTable().PutAll(keys, flows); err != nil {
		t.Fatal(err)
	}
	for range 2 { // they are there already
		if err := set.PlantMilestones(); err != nil {
			t.Fatal(err)
		}
		wantHalves(t, set.FlowsIPv4, 4)
		wantHalves(t, set.FlowsIPv6, 2*milestoneEvery)
	}
	if ipv4, ipv6, err := set.FlowTable().Count(); err != nil || ipv4 != 0 || ipv6 != len(keys) {
		t.Errorf("%d and %d halves are counted (%v), not 0 and %d", ipv4, ipv6, err, len(keys))
	}
}
