package packet

import (
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Tunnel is the header of a packet that carries another one of the same family (RFC 2003, RFC 2473).
type Tunnel struct {
	From, To netip.Addr
	Port     uint16 // of the backend: the identification in IPv4, the flow label in IPv6
	TTL      uint8
}

// In returns a frame's bytes with the IP packet in a tunnel.
func (t Tunnel) In(frame []byte, trafficClass uint8) []byte {
	ethernet, inner := frame[:14], frame[14:]
	packet := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(packet, options, t.layer(trafficClass), gopacket.Payload(inner)); err != nil {
		panic(err) // a mistake in the test itself
	}
	return slices.Concat(ethernet, packet.Bytes())
}

func (t Tunnel) layer(trafficClass uint8) gopacket.SerializableLayer {
	if t.From.Is4() {
		return &layers.IPv4{
			Version: 4, TOS: trafficClass, Id: t.Port, Flags: layers.IPv4DontFragment, TTL: t.TTL, Protocol: layers.IPProtocolIPv4,
			SrcIP: t.From.AsSlice(), DstIP: t.To.AsSlice(),
		}
	}
	return &layers.IPv6{
		Version: 6, TrafficClass: trafficClass, FlowLabel: uint32(t.Port), HopLimit: t.TTL, NextHeader: layers.IPProtocolIPv6,
		SrcIP: t.From.AsSlice(), DstIP: t.To.AsSlice(),
	}
}
