package maps

import "net/netip"

// PrefixKeyOf returns the key of a prefix.
func PrefixKeyOf(prefix netip.Prefix) PrefixKey {
	bits := prefix.Bits()
	if prefix.Addr().Is4() {
		bits += mappedBits
	}
	return PrefixKey{PrefixLength: uint32(bits), Address: AddressOf(prefix.Masked().Addr())}
}

// Prefix returns the prefix of a key; one that is not within a family is read as IPv6.
func (k bpfPrefixKey) Prefix() netip.Prefix {
	bits, address := int(k.PrefixLength), k.Address.Addr()
	if address.Is4() && bits >= mappedBits {
		return netip.PrefixFrom(address, bits-mappedBits)
	}
	return netip.PrefixFrom(netip.AddrFrom16(k.Address.Bytes), bits)
}
