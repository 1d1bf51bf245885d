package clusterips

import (
	"errors"
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Writer writes the maps cluster_ips and cluster_bounds. Nothing else does. It is safe for concurrent use.
type Writer struct {
	set *maps.Set

	mu     sync.Mutex
	held   map[netip.Prefix]maps.ClusterIPUse // nil: the maps are to be read back
	bounds map[bool]maps.Bounds               // by whether it is IPv6
	full   map[netip.Prefix]struct{}          // for which there was no room
}

// NewWriter returns a writer. It reads and writes nothing yet.
func NewWriter(set *maps.Set) *Writer {
	return &Writer{set: set, full: map[netip.Prefix]struct{}{}}
}

// Sync makes the map hold these and no others. Where it does already, nothing is written.
func (w *Writer) Sync(all map[netip.Prefix]maps.ClusterIPUse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.read(); err != nil {
		return err
	}
	changes := gomaps.Clone(all)
	for prefix := range w.held {
		if _, wanted := all[prefix]; !wanted {
			changes[prefix] = 0
		}
	}
	clear(w.full)
	return w.try(changes)
}

// Apply writes changes; 0: nothing is to be there. Any may already be as it should.
func (w *Writer) Apply(changes map[netip.Prefix]maps.ClusterIPUse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		return errors.New("the map cluster_ips is to be written anew")
	}
	return w.try(changes)
}

// Problems says for which addresses there is no room.
func (w *Writer) Problems() []compile.Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.full) == 0 {
		return nil
	}
	return []compile.Problem{{
		Object: "Map cluster_ips", Reason: "NoRoom",
		Message: fmt.Sprintf("%d addresses of Services have no room: unknown ports there are not rejected; raise --max-services", len(w.full)),
	}}
}

// read reads back what the maps hold.
func (w *Writer) read() error {
	held := map[netip.Prefix]maps.ClusterIPUse{}
	var key maps.PrefixKey
	var use maps.ClusterIPUse
	entries := w.set.ClusterIPs.Iterate()
	for entries.Next(&key, &use) {
		held[key.Prefix()] = use
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read map cluster_ips: %w", err)
	}
	bounds := map[bool]maps.Bounds{}
	for _, ipv6 := range []bool{false, true} {
		var err error
		if bounds[ipv6], err = w.set.Bounds(ipv6); err != nil {
			return err
		}
	}
	w.held, w.bounds = held, bounds
	return nil
}

// try writes changes. After a failure only the maps know how far it got.
func (w *Writer) try(changes map[netip.Prefix]maps.ClusterIPUse) error {
	err := w.write(changes)
	if err != nil {
		w.held = nil
	}
	return err
}

// write first takes out what makes room, then widens the bounds, then puts.
func (w *Writer) write(changes map[netip.Prefix]maps.ClusterIPUse) error {
	var puts []netip.Prefix
	for _, prefix := range slices.SortedFunc(gomaps.Keys(changes), netip.Prefix.Compare) {
		use := changes[prefix]
		delete(w.full, prefix)
		switch {
		case use == w.held[prefix]:
		case use == 0:
			if err := w.delete(prefix); err != nil {
				return err
			}
		default:
			puts = append(puts, prefix)
		}
	}
	if err := w.widen(puts); err != nil {
		return err
	}
	for _, prefix := range puts {
		if err := w.put(prefix, changes[prefix]); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) delete(prefix netip.Prefix) error {
	key := maps.PrefixKeyOf(prefix)
	if err := w.set.ClusterIPs.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from map cluster_ips: %w", err)
	}
	delete(w.held, prefix)
	return nil
}

func (w *Writer) put(prefix netip.Prefix, use maps.ClusterIPUse) error {
	key := maps.PrefixKeyOf(prefix)
	err := w.set.ClusterIPs.Put(&key, use)
	if errors.Is(err, syscall.ENOSPC) {
		w.full[prefix] = struct{}{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("write to map cluster_ips: %w", err)
	}
	w.held[prefix] = use
	return nil
}

// widen makes the bounds have the prefixes.
func (w *Writer) widen(prefixes []netip.Prefix) error {
	wider := gomaps.Clone(w.bounds)
	for _, prefix := range prefixes {
		ipv6 := prefix.Addr().Is6()
		wider[ipv6] = wider[ipv6].With(prefix)
	}
	for ipv6, bounds := range wider {
		if bounds == w.bounds[ipv6] {
			continue
		}
		if err := w.set.PutBounds(ipv6, bounds); err != nil {
			return err
		}
		w.bounds[ipv6] = bounds
	}
	return nil
}
