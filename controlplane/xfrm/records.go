package xfrm

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/maps"
)

// everything is what the map holds where it has no room for what it should: of both families.
var everything = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}

// Write makes the map xfrm_prefixes hold these prefixes and no others, and tells the programs whether there are any. Where
// it has no room for them, it holds all addresses, and full is true.
func Write(set *maps.Set, prefixes []netip.Prefix) (full bool, err error) {
	err = hold(set.XFRMPrefixes, prefixes)
	if errors.Is(err, unix.ENOSPC) {
		full, err = true, hold(set.XFRMPrefixes, everything)
	}
	if err != nil {
		return full, err
	}
	return full, set.ChangeLive(func(settings *maps.LiveSettings) {
		settings.PoliciesExist = 0
		if len(prefixes) > 0 {
			settings.PoliciesExist = 1
		}
	})
}

// hold makes the map hold these prefixes and no others: what goes, goes first, so that there is room.
func hold(m *ebpf.Map, prefixes []netip.Prefix) error {
	wanted := map[maps.PrefixKey]struct{}{}
	for _, prefix := range prefixes {
		wanted[maps.PrefixKeyOf(prefix)] = struct{}{}
	}
	held := map[maps.PrefixKey]struct{}{}
	if err := maps.EachKey(m, func(key maps.PrefixKey) { held[key] = struct{}{} }); err != nil {
		return fmt.Errorf("read map xfrm_prefixes: %w", err)
	}
	for key := range held {
		if _, keep := wanted[key]; keep {
			continue
		}
		if err := m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete from map xfrm_prefixes: %w", err)
		}
	}
	for key := range wanted {
		if _, there := held[key]; there {
			continue
		}
		if err := m.Put(&key, uint32(1)); err != nil {
			return fmt.Errorf("write to map xfrm_prefixes: %w", err)
		}
	}
	return nil
}
