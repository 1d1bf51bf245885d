package maps

import (
	"net/netip"
)

const (
	serviceBits = 32 // of a SourceKey, before its address
	mappedBits  = 96 // of a v4-mapped address, before the IPv4 one
)

// SourceKeyOf returns the key of a prefix whose addresses may use a service's load balancer addresses.
func SourceKeyOf(service uint32, prefix netip.Prefix) SourceKey {
	bits := serviceBits + prefix.Bits()
	if prefix.Addr().Is4() {
		bits += mappedBits
	}
	return SourceKey{PrefixLength: uint32(bits), Service: service, Address: AddressOf(prefix.Masked().Addr())}
}

// Prefix returns the prefix of a key; one that is not within a family is read as IPv6.
func (k bpfSourceKey) Prefix() netip.Prefix {
	bits := int(k.PrefixLength) - serviceBits
	address := k.Address.Addr()
	if address.Is4() && bits >= mappedBits {
		return netip.PrefixFrom(address, bits-mappedBits)
	}
	return netip.PrefixFrom(netip.AddrFrom16(k.Address.Bytes), bits)
}
