package maps

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Bounds are the first and the last address of what map cluster_ips has of one family. The zero ones have none.
type Bounds struct{ Low, High netip.Addr }

// With returns bounds that have the prefix, too.
func (b Bounds) With(prefix netip.Prefix) Bounds {
	first, last := prefix.Masked().Addr(), lastOf(prefix)
	if !b.Low.IsValid() || first.Less(b.Low) {
		b.Low = first
	}
	if !b.High.IsValid() || b.High.Less(last) {
		b.High = last
	}
	return b
}

// lastOf returns the last address of a prefix.
func lastOf(prefix netip.Prefix) netip.Addr {
	address := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(address)*8; bit++ {
		address[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(address)
	return last
}

// familyIndex is where map cluster_bounds has a family.
func familyIndex(ipv6 bool) uint32 {
	if ipv6 {
		return 1
	}
	return 0
}

// Bounds reads the bounds of a family. That it has none reads as the unspecified addresses.
func (s *Set) Bounds(ipv6 bool) (Bounds, error) {
	var record AddressBounds
	if err := s.ClusterBounds.Lookup(familyIndex(ipv6), &record); err != nil {
		return Bounds{}, fmt.Errorf("read map cluster_bounds: %w", err)
	}
	if record == (AddressBounds{}) {
		return Bounds{}, nil
	}
	return Bounds{Low: record.Low.Addr(), High: record.High.Addr()}, nil
}

// PutBounds writes the bounds of a family.
func (s *Set) PutBounds(ipv6 bool, bounds Bounds) error {
	record := AddressBounds{Low: AddressOf(bounds.Low), High: AddressOf(bounds.High)}
	if err := s.ClusterBounds.Update(familyIndex(ipv6), &record, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write map cluster_bounds: %w", err)
	}
	return nil
}
