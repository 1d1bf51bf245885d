package detectlocal

import (
	"net/netip"

	"github.com/weir-lb/weir/maps"
)

// Write makes the map inside_sources hold these prefixes and no others. Where it does already, nothing is written.
func Write(set *maps.Set, prefixes []netip.Prefix) error {
	wanted := map[maps.PrefixKey]struct{}{}
	for _, prefix := range prefixes {
		wanted[maps.PrefixKeyOf(prefix)] = struct{}{}
	}
	return maps.Hold(set.InsideSources, wanted)
}
