package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/maps"
)

// openPinned opens the maps that an agent has pinned, whether it runs or not.
func openPinned(bpffs string) (*maps.Set, error) {
	dir := pinsDir(bpffs)
	set, err := maps.Open(dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("no permission to read %s: run as root", dir)
	case errors.Is(err, maps.ErrNotPinned):
		return nil, fmt.Errorf("no maps are pinned in %s: start weir agent, or name the bpffs of one with --bpffs", dir)
	case errors.Is(err, maps.ErrLayout):
		return nil, fmt.Errorf("%w: ask that one, or run `weir cleanup`, which ends all flows, and start this one's agent", err)
	case err != nil:
		return nil, err
	}
	return set, nil
}

// batchSize is how many elements are read in one system call.
const batchSize = 4096

// readAll reads a whole map. Elements that come or go meanwhile may be there or not.
func readAll[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	all := map[K]V{}
	err := each(m, func(key K, value V) { all[key] = value })
	return all, err
}

// each calls a function with every element of a map.
func each[K, V any](m *ebpf.Map, do func(K, V)) error {
	size := min(batchSize, int(m.MaxEntries()))
	keys, values := make([]K, size), make([]V, size)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			do(keys[i], values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", m, err)
		}
	}
}

// readTraffic reads the counters at an index, summed over the CPUs.
func readTraffic(m *ebpf.Map, index uint32) (trafficView, error) {
	sum, err := maps.ReadTraffic(m, index)
	return trafficView{
		Flows: sum.Flows, Packets: sum.Packets, Bytes: sum.Bytes,
		ReplyPackets: sum.ReplyPackets, ReplyBytes: sum.ReplyBytes,
	}, err
}

// nameOf reads a zero-padded name.
func nameOf(name maps.ServiceName) string {
	return strings.TrimRight(string(name.Name[:]), "\x00")
}
