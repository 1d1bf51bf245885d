package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Hold makes a map that is a set, each value being 1, hold these keys and no others. Where it does already, nothing is
// written. After an error it holds as many of them as it can.
func Hold[K comparable](m *ebpf.Map, wanted map[K]struct{}) error {
	held := map[K]struct{}{}
	if err := EachKey(m, func(key K) { held[key] = struct{}{} }); err != nil {
		return err
	}
	return Replace(m, held, wanted)
}

// Replace is Hold where it is known what the map holds.
func Replace[K comparable](m *ebpf.Map, held, wanted map[K]struct{}) error {
	var failed error
	for key := range held {
		if _, keep := wanted[key]; keep {
			continue
		}
		if err := m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			failed = fmt.Errorf("delete from %s: %w", m, err)
		}
	}
	for key := range wanted {
		if _, there := held[key]; there {
			continue
		}
		if err := m.Put(&key, uint32(1)); err != nil {
			failed = fmt.Errorf("write to %s: %w", m, err)
		}
	}
	return failed
}
