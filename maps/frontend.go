package maps

import (
	"encoding/binary"
	"net/netip"
)

// FrontendKeyOf returns the key of a frontend. An unspecified address stands for a NodePort: any address
// of the node.
func FrontendKeyOf(frontend netip.AddrPort, protocol uint8) FrontendKey {
	return FrontendKey{Address: AddressOf(frontend.Addr()), Port: frontend.Port(), Protocol: protocol}
}

// AddrPort returns the address and port clients send to.
func (k bpfFrontendKey) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(k.Address.Addr(), k.Port)
}

// Hash is frontend_hash of bpf/service.h: over the key's five 32-bit words in native order.
func (k bpfFrontendKey) Hash() uint32 {
	var key [20]byte
	copy(key[:16], k.Address.Bytes[:])
	binary.NativeEndian.PutUint16(key[16:], k.Port)
	key[18], key[19] = k.Protocol, k.Pad
	return hashWords(key[:], 0)
}

// Seal returns the value that makes the key, which is of that kind, name the record at an index of services. The
// seal ties it to the key, so that a reader of a recycled element notices.
func (k bpfFrontendKey) Seal(kind FrontendKind, index, generation uint32) Frontend {
	return Frontend{Service: uint32(kind)<<frontendKindShift | index, Seal: k.Hash() ^ generation}
}

// Generation returns the generation of the record that a value names for this key.
func (k bpfFrontendKey) Generation(value Frontend) uint32 {
	return k.Hash() ^ value.Seal
}

const (
	frontendIndexMask = 0xffffff // FRONTEND_INDEX_MASK of bpf/types.h
	frontendKindShift = 24       // FRONTEND_KIND_SHIFT
)

// Index returns the index of the service record that the value names.
func (f bpfFrontend) Index() uint32 { return f.Service & frontendIndexMask }

// Kind returns what kind of frontend it is.
func (f bpfFrontend) Kind() FrontendKind { return FrontendKind(f.Service >> frontendKindShift) }
