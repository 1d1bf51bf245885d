package maps

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestHold brings a map from one set to others, and to one that has no room.
func TestHold(t *testing.T) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, step := range []struct {
		want []uint32
		full bool
	}{
		{want: []uint32{1, 2}},
		{want: []uint32{2, 3}}, // as many as there is room for: one goes before the other comes
		{want: []uint32{2, 3, 4}, full: true},
		{want: nil},
	} {
		wanted := map[uint32]struct{}{}
		for _, key := range step.want {
			wanted[key] = struct{}{}
		}
		if err := Hold(m, wanted); errors.Is(err, unix.E2BIG) != step.full || err != nil && !step.full {
			t.Errorf("%v: %v", step.want, err)
		}
		count := 0
		err := EachKey(m, func(key uint32) {
			count++
			if _, there := wanted[key]; !there {
				t.Errorf("%v: the map holds %d", step.want, key)
			}
		})
		if err != nil || count != min(len(wanted), 2) {
			t.Errorf("%v: the map holds %d (%v)", step.want, count, err)
		}
		if err := Replace(m, wanted, wanted); err != nil {
			t.Errorf("%v is there, and not left alone: %v", step.want, err)
		}
	}
}
