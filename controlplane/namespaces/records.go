package namespaces

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	weirmaps "github.com/weir-lb/weir/maps"
)

// records is what the maps namespaces and left_cgroups hold. Nothing else writes them.
type records struct {
	set        *weirmaps.Set
	namespaces map[uint64]weirmaps.Namespace
	cgroups    map[uint64]uint32
	vips       map[weirmaps.LocalVIP]uint32
}

// readRecords reads what a predecessor has left.
func readRecords(set *weirmaps.Set) (*records, error) {
	r := &records{
		set: set, namespaces: map[uint64]weirmaps.Namespace{}, cgroups: map[uint64]uint32{}, vips: map[weirmaps.LocalVIP]uint32{},
	}
	var key uint64
	var record weirmaps.Namespace
	entries := set.Namespaces.Iterate()
	for entries.Next(&key, &record) {
		r.namespaces[key] = record
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read the map namespaces: %w", err)
	}
	var value uint32
	entries = set.LeftCgroups.Iterate()
	for entries.Next(&key, &value) {
		r.cgroups[key] = value
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read the map left_cgroups: %w", err)
	}
	var vip weirmaps.LocalVIP
	entries = set.LocalVIPs.Iterate()
	for entries.Next(&vip, &value) {
		r.vips[vip] = value
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read the map local_vips: %w", err)
	}
	return r, nil
}

// setNamespaces makes the map hold these and no others.
func (r *records) setNamespaces(wanted map[uint64]weirmaps.Namespace) error {
	put := func(key uint64, value weirmaps.Namespace) error {
		return r.set.Namespaces.Update(key, &value, ebpf.UpdateLock)
	}
	return converge("namespaces", r.set.Namespaces, r.namespaces, wanted, put)
}

// setCgroups makes the map hold these and no others.
func (r *records) setCgroups(wanted map[uint64]uint32) error {
	put := func(key uint64, value uint32) error { return r.set.LeftCgroups.Put(key, value) }
	return converge("left_cgroups", r.set.LeftCgroups, r.cgroups, wanted, put)
}

// setVIPs makes the map hold these and no others.
func (r *records) setVIPs(wanted map[weirmaps.LocalVIP]uint32) error {
	put := func(key weirmaps.LocalVIP, value uint32) error { return r.set.LocalVIPs.Put(&key, value) }
	return converge("local_vips", r.set.LocalVIPs, r.vips, wanted, put)
}

// converge makes a map hold what is wanted; held is what it holds.
func converge[K, V comparable](name string, m *ebpf.Map, held, wanted map[K]V, put func(K, V) error) (failed error) {
	for key, value := range wanted {
		if had, known := held[key]; known && had == value {
			continue
		}
		if err := put(key, value); err != nil {
			failed = addOnce(failed, fmt.Errorf("write to the map %s: %w", name, err))
			continue
		}
		held[key] = value
	}
	for key := range held {
		if _, keep := wanted[key]; keep {
			continue
		}
		if err := m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			failed = addOnce(failed, fmt.Errorf("delete from the map %s: %w", name, err))
			continue
		}
		delete(held, key)
	}
	return failed
}
