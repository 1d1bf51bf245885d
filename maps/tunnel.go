package maps

import "net/netip"

// TunnelTargetOf returns where a tunnel to an endpoint leads.
func TunnelTargetOf(endpoint netip.AddrPort, protocol uint8) TunnelTarget {
	return TunnelTarget{Address: AddressOf(endpoint.Addr()), Port: endpoint.Port(), Protocol: protocol}
}
