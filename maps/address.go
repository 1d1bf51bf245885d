package maps

import (
	"encoding/binary"
	"net/netip"
)

// AddressOf returns the record of an address: 16 bytes in network order, v4-mapped for IPv4.
func AddressOf(addr netip.Addr) Address {
	return Address{Bytes: addr.As16()}
}

// Addr returns the address of a record: an IPv4 address where it is v4-mapped.
func (a bpfAddress) Addr() netip.Addr {
	return netip.AddrFrom16(a.Bytes).Unmap()
}

// IsZero reports whether the record holds no address.
func (a bpfAddress) IsZero() bool {
	return a.Bytes == [16]byte{}
}

// swap turns a port between network and host byte order.
func swap(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// TupleOf returns the record of a packet's source and destination.
func TupleOf(source, destination netip.AddrPort) Tuple {
	return Tuple{
		Source:          AddressOf(source.Addr()),
		Destination:     AddressOf(destination.Addr()),
		SourcePort:      swap(source.Port()),
		DestinationPort: swap(destination.Port()),
	}
}

// SourceAddrPort returns where the packet comes from.
func (t bpfTuple) SourceAddrPort() netip.AddrPort {
	return netip.AddrPortFrom(t.Source.Addr(), swap(t.SourcePort))
}

// DestinationAddrPort returns where the packet goes.
func (t bpfTuple) DestinationAddrPort() netip.AddrPort {
	return netip.AddrPortFrom(t.Destination.Addr(), swap(t.DestinationPort))
}

// Reverse returns the tuple of an answer.
func (t bpfTuple) Reverse() Tuple {
	return Tuple{
		Source:          t.Destination,
		Destination:     t.Source,
		SourcePort:      t.DestinationPort,
		DestinationPort: t.SourcePort,
	}
}
