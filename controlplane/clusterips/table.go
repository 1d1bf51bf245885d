// Package clusterips says what becomes of packets to addresses of Services that no frontend is for (rule C05), and
// writes it to the maps: an unknown port of a ClusterIP is rejected, an address of a ServiceCIDR that no Service has
// is dropped.
package clusterips

import (
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
	"github.com/weir-lb/weir/maps"
)

// Table is what the map shall hold. It is kept up to date Service by Service.
type Table struct {
	of        map[store.Key]compile.Addresses
	addresses map[netip.Addr]count
	ranges    map[netip.Prefix]struct{}
	touched   map[netip.Prefix]struct{}
}

// count is how many Services have an address, and as what.
type count struct{ allocated, left int }

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{
		of:        map[store.Key]compile.Addresses{},
		addresses: map[netip.Addr]count{},
		ranges:    map[netip.Prefix]struct{}{},
		touched:   map[netip.Prefix]struct{}{},
	}
}

// Set replaces the addresses of a Service; none are those of one that is gone.
func (t *Table) Set(service store.Key, now compile.Addresses) {
	old := t.of[service]
	if old.Equal(now) {
		return
	}
	t.count(now, 1)
	t.count(old, -1)
	t.of[service] = now
	if now.Empty() {
		delete(t.of, service)
	}
}

func (t *Table) count(addresses compile.Addresses, by int) {
	for _, address := range addresses.Allocated {
		t.add(address, count{allocated: by})
	}
	for _, address := range addresses.Left {
		t.add(address, count{left: by})
	}
}

func (t *Table) add(address netip.Addr, by count) {
	is := t.addresses[address]
	is.allocated += by.allocated
	is.left += by.left
	t.addresses[address] = is
	if is == (count{}) {
		delete(t.addresses, address)
	}
	t.touched[netip.PrefixFrom(address, address.BitLen())] = struct{}{}
}

// SetRanges replaces the prefixes of the ServiceCIDRs.
func (t *Table) SetRanges(prefixes []netip.Prefix) {
	now := make(map[netip.Prefix]struct{}, len(prefixes))
	for _, prefix := range prefixes {
		now[prefix] = struct{}{}
		t.touched[prefix] = struct{}{}
	}
	for prefix := range t.ranges {
		t.touched[prefix] = struct{}{}
	}
	t.ranges = now
	for address, is := range t.addresses {
		if is.left > 0 {
			t.touched[netip.PrefixFrom(address, address.BitLen())] = struct{}{}
		}
	}
}

// use is what the map shall say of a prefix; 0: nothing. An address that is left alone has to be there only where it
// would else count as one of a range: others would widen the bounds.
func (t *Table) use(prefix netip.Prefix) maps.ClusterIPUse {
	if prefix.IsSingleIP() {
		switch is := t.addresses[prefix.Addr()]; {
		case is.left > 0 && t.isInRange(prefix.Addr()):
			return maps.ClusterIPLeft
		case is.left > 0:
			return 0
		case is.allocated > 0:
			return maps.ClusterIPAllocated
		}
	}
	if _, inRange := t.ranges[prefix]; inRange {
		return maps.ClusterIPUnallocated
	}
	return 0
}

func (t *Table) isInRange(address netip.Addr) bool {
	for prefix := range t.ranges {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

// Changes returns what may be different since the last call of Forget; 0: nothing is to be there.
func (t *Table) Changes() map[netip.Prefix]maps.ClusterIPUse {
	changes := make(map[netip.Prefix]maps.ClusterIPUse, len(t.touched))
	for prefix := range t.touched {
		changes[prefix] = t.use(prefix)
	}
	return changes
}

// Forget says that the changes have been written.
func (t *Table) Forget() { clear(t.touched) }

// All returns all that the map shall hold.
func (t *Table) All() map[netip.Prefix]maps.ClusterIPUse {
	all := make(map[netip.Prefix]maps.ClusterIPUse, len(t.addresses)+len(t.ranges))
	for prefix := range t.ranges {
		all[prefix] = t.use(prefix)
	}
	for address := range t.addresses {
		prefix := netip.PrefixFrom(address, address.BitLen())
		if use := t.use(prefix); use != 0 {
			all[prefix] = use
		}
	}
	return all
}
