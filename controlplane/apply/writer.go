package apply

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/maps"
)

// writer is every write the applier makes. Each call is one step; readers may look between any two.
type writer interface {
	putBackends(indices []uint32, records []maps.Backend) error
	putTable(table maps.SlotRange, backends []uint32) error
	putServices(indices []uint32, records []maps.Service) error
	putNames(indices []uint32, names []maps.ServiceName) error
	putFrontends(keys []maps.FrontendKey, values []maps.Frontend) error
	deleteFrontends(keys []maps.FrontendKey) error
	deleteNames(indices []uint32) error
	zeroStats(stats *ebpf.Map, indices []uint32) error
}

// mapsWriter writes to the kernel's maps.
type mapsWriter struct {
	set    *maps.Set
	arena  *maps.Arena
	writes atomic.Uint64 // elements and tables written or deleted
}

// batchFrom is the number of elements from which one batch call is cheaper than a call for each.
const batchFrom = 4

// putAll writes elements, in one call where there are many.
func putAll[K, V any](w *mapsWriter, m *ebpf.Map, name string, keys []K, values []V) error {
	w.writes.Add(uint64(len(keys)))
	if len(keys) >= batchFrom {
		_, err := m.BatchUpdate(keys, values, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return fmt.Errorf("write %d elements of map %s: %w", len(keys), name, err)
		}
	}
	for i := range keys {
		if err := m.Put(&keys[i], &values[i]); err != nil {
			return fmt.Errorf("write map %s: %w", name, err)
		}
	}
	return nil
}

// deleteAll deletes elements. One that is not there is as it should be.
func deleteAll[K any](w *mapsWriter, m *ebpf.Map, name string, keys []K) error {
	w.writes.Add(uint64(len(keys)))
	for i := range keys {
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete from map %s: %w", name, err)
		}
	}
	return nil
}

func (w *mapsWriter) putBackends(indices []uint32, records []maps.Backend) error {
	return putAll(w, w.set.Backends, "backends", indices, records)
}

func (w *mapsWriter) putTable(table maps.SlotRange, backends []uint32) error {
	w.writes.Add(1)
	return w.arena.Write(table, backends)
}

func (w *mapsWriter) putServices(indices []uint32, records []maps.Service) error {
	return putAll(w, w.set.Services, "services", indices, records)
}

func (w *mapsWriter) putNames(indices []uint32, names []maps.ServiceName) error {
	return putAll(w, w.set.ServiceNames, "service_names", indices, names)
}

func (w *mapsWriter) putFrontends(keys []maps.FrontendKey, values []maps.Frontend) error {
	return putAll(w, w.set.Frontends, "frontends", keys, values)
}

func (w *mapsWriter) deleteFrontends(keys []maps.FrontendKey) error {
	return deleteAll(w, w.set.Frontends, "frontends", keys)
}

func (w *mapsWriter) deleteNames(indices []uint32) error {
	return deleteAll(w, w.set.ServiceNames, "service_names", indices)
}

// zeroStats clears counters of former holders of these indices.
func (w *mapsWriter) zeroStats(stats *ebpf.Map, indices []uint32) error {
	for _, index := range indices {
		if err := stats.Put(index, make([]maps.Traffic, ebpf.MustPossibleCPU())); err != nil {
			return fmt.Errorf("clear the counters of %d: %w", index, err)
		}
	}
	return nil
}
