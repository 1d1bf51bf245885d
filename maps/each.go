package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// eachBatch is how many elements are read by one system call.
const eachBatch = 4096

// Each calls visit with every element of a map that is not per CPU, until it returns false. Elements that
// come or go meanwhile may be visited or not; a key and its value always belong together.
func Each[K, V any](m *ebpf.Map, visit func(key K, value V) bool) error {
	size := min(eachBatch, int(m.MaxEntries()))
	keys, values := make([]K, size), make([]V, size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read %s: %w", m, err)
		}
		for i := range n {
			if !visit(keys[i], values[i]) {
				return nil
			}
		}
		if err != nil {
			return nil
		}
	}
}

// EachKey calls visit with the key of every element of a map, one by one: kernels before 5.14 read no LPM trie in
// batches. Elements that come or go meanwhile may be visited or not.
func EachKey[K any](m *ebpf.Map, visit func(key K)) error {
	var key, next K
	err := m.NextKey(nil, &next)
	for ; err == nil; err = m.NextKey(&key, &next) {
		key = next
		visit(key)
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read %s: %w", m, err)
	}
	return nil
}
