package detectlocal

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/maps"
)

// Write makes the map inside_sources hold these prefixes and no others. Where it does already, nothing is written.
func Write(set *maps.Set, prefixes []netip.Prefix) error {
	wanted := map[maps.PrefixKey]struct{}{}
	for _, prefix := range prefixes {
		wanted[maps.PrefixKeyOf(prefix)] = struct{}{}
	}
	held := map[maps.PrefixKey]struct{}{}
	err := maps.EachKey(set.InsideSources, func(key maps.PrefixKey) { held[key] = struct{}{} })
	if err != nil {
		return fmt.Errorf("read map inside_sources: %w", err)
	}
	for key := range wanted {
		if _, there := held[key]; there {
			continue
		}
		if err := set.InsideSources.Put(&key, uint32(1)); err != nil {
			return fmt.Errorf("write to map inside_sources: %w", err)
		}
	}
	for key := range held {
		if _, keep := wanted[key]; keep {
			continue
		}
		if err := set.InsideSources.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete from map inside_sources: %w", err)
		}
	}
	return nil
}
