package packet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Frame describes a TCP, UDP or SCTP packet on the wire. The packet a program shall make of it is described by a
// changed copy, and built from the ground up, with every checksum.
type Frame struct {
	SourceMAC, DestinationMAC net.HardwareAddr // both nil: no Ethernet header
	VLANs                     []uint16         // tags, the outer first
	From, To                  netip.AddrPort
	Protocol                  compile.Protocol
	TTL                       uint8
	TrafficClass              uint8 // of IPv4 the type of service: DSCP, and ECN in the last two bits
	TCP                       TCPFields
	SCTP                      SCTPFields
	NoChecksum                bool   // UDP without a checksum
	MayBeCut                  bool   // by routers, in IPv4
	Options                   []byte // of IPv4, a multiple of 4 bytes
	Extensions                []Extension
	Payload                   []byte
	Padding                   int // bytes behind the IP packet
}

// TCPFields are the parts of a TCP header that tests vary.
type TCPFields struct {
	SYN, ACK, FIN, RST, PSH bool
	Sequence, Acknowledged  uint32
	Window                  uint16
	Options                 []byte // a multiple of 4 bytes
}

// Extension is an IPv6 extension header of the common form. Its body is what follows the two bytes that say
// what comes next and how long it is; with them it is a multiple of 8 bytes.
type Extension struct {
	Kind layers.IPProtocol
	Body []byte
}

// Bytes builds the packet.
func (f Frame) Bytes() []byte {
	packet := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(packet, options, f.layers()...); err != nil {
		panic(fmt.Sprintf("build a packet: %v", err)) // a mistake in the test itself
	}
	return append(packet.Bytes(), make([]byte, f.Padding)...)
}

func (f Frame) ipv6() bool { return !f.From.Addr().Is4() }

func (f Frame) layers() []gopacket.SerializableLayer {
	var all []gopacket.SerializableLayer
	all = append(all, f.linkLayers()...)
	network, checksummed := f.networkLayers()
	all = append(all, network...)
	all = append(all, f.transportLayer(checksummed))
	return append(all, gopacket.Payload(f.Payload))
}

func (f Frame) linkLayers() []gopacket.SerializableLayer {
	if f.SourceMAC == nil {
		return nil
	}
	next := layers.EthernetTypeIPv4
	if f.ipv6() {
		next = layers.EthernetTypeIPv6
	}
	ethernet := &layers.Ethernet{SrcMAC: f.SourceMAC, DstMAC: f.DestinationMAC, EthernetType: next}
	all := []gopacket.SerializableLayer{ethernet}
	for i, id := range f.VLANs {
		tag := &layers.Dot1Q{VLANIdentifier: id, Type: next}
		if i < len(f.VLANs)-1 {
			tag.Type = layers.EthernetTypeDot1Q
		}
		ethernet.EthernetType = layers.EthernetTypeDot1Q
		all = append(all, tag)
	}
	return all
}

// networkLayers returns the IP header with what belongs to it, and the header transport checksums cover.
func (f Frame) networkLayers() ([]gopacket.SerializableLayer, gopacket.NetworkLayer) {
	protocol := layers.IPProtocol(f.Protocol)
	if !f.ipv6() {
		flags := layers.IPv4DontFragment
		if f.MayBeCut {
			flags = 0
		}
		ip := &layers.IPv4{
			Version: 4, TOS: f.TrafficClass, TTL: f.TTL, Protocol: protocol, Id: 0x1234, Flags: flags,
			SrcIP: f.From.Addr().AsSlice(), DstIP: f.To.Addr().AsSlice(), Options: ipv4Options(f.Options),
		}
		return []gopacket.SerializableLayer{ip}, ip
	}
	ip := &layers.IPv6{
		Version: 6, HopLimit: f.TTL, NextHeader: protocol, FlowLabel: 0x54321, TrafficClass: f.TrafficClass,
		SrcIP: f.From.Addr().AsSlice(), DstIP: f.To.Addr().AsSlice(),
	}
	all := []gopacket.SerializableLayer{ip}
	if raw := f.extensionBytes(); len(raw) > 0 {
		ip.NextHeader = f.Extensions[0].Kind
		all = append(all, gopacket.Payload(raw))
	}
	return all, ip
}

// ipv4Options returns raw option bytes as layers: one byte each, which is how No-Operation is written.
func ipv4Options(raw []byte) []layers.IPv4Option {
	var options []layers.IPv4Option
	for _, b := range raw {
		options = append(options, layers.IPv4Option{OptionType: b, OptionLength: 1})
	}
	return options
}

func (f Frame) extensionBytes() []byte {
	var raw []byte
	for i, extension := range f.Extensions {
		next := layers.IPProtocol(f.Protocol)
		if i < len(f.Extensions)-1 {
			next = f.Extensions[i+1].Kind
		}
		raw = append(raw, byte(next), byte((len(extension.Body)+2)/8-1))
		raw = append(raw, extension.Body...)
	}
	return raw
}

func (f Frame) transportLayer(network gopacket.NetworkLayer) gopacket.SerializableLayer {
	switch f.Protocol {
	case compile.UDP:
		return udpLayer{f, network}
	case compile.SCTP:
		return sctpLayer{f}
	}
	header := &layers.TCP{
		SrcPort: layers.TCPPort(f.From.Port()), DstPort: layers.TCPPort(f.To.Port()),
		SYN: f.TCP.SYN, ACK: f.TCP.ACK, FIN: f.TCP.FIN, RST: f.TCP.RST, PSH: f.TCP.PSH,
		Seq: f.TCP.Sequence, Ack: f.TCP.Acknowledged, Window: f.TCP.Window,
	}
	header.Options = tcpOptions(f.TCP.Options)
	if err := header.SetNetworkLayerForChecksum(network); err != nil {
		panic(err)
	}
	return header
}

// tcpOptions returns raw options as layers.
func tcpOptions(raw []byte) []layers.TCPOption {
	var options []layers.TCPOption
	for len(raw) > 0 {
		length := 1
		if raw[0] > layers.TCPOptionKindNop {
			length = int(raw[1])
		}
		option := layers.TCPOption{OptionType: layers.TCPOptionKind(raw[0]), OptionLength: uint8(length)}
		if length > 1 {
			option.OptionData = raw[2:length]
		}
		options, raw = append(options, option), raw[length:]
	}
	return options
}

// udpLayer is a UDP header whose checksum may be left out, and is never 0 otherwise (RFC 768).
type udpLayer struct {
	frame   Frame
	network gopacket.NetworkLayer
}

// LayerType is of gopacket.SerializableLayer.
func (udpLayer) LayerType() gopacket.LayerType { return layers.LayerTypeUDP }

// SerializeTo is of gopacket.SerializableLayer.
func (u udpLayer) SerializeTo(packet gopacket.SerializeBuffer, options gopacket.SerializeOptions) error {
	header := &layers.UDP{SrcPort: layers.UDPPort(u.frame.From.Port()), DstPort: layers.UDPPort(u.frame.To.Port())}
	if err := header.SetNetworkLayerForChecksum(u.network); err != nil {
		return err
	}
	options.ComputeChecksums = !u.frame.NoChecksum
	if err := header.SerializeTo(packet, options); err != nil {
		return err
	}
	field := packet.Bytes()[6:8]
	if options.ComputeChecksums && binary.BigEndian.Uint16(field) == 0 {
		binary.BigEndian.PutUint16(field, 0xffff)
	}
	return nil
}

// fragment builds the packet as if it were a part of a datagram: at that offset in bytes, and with more behind it or not.
func (f Frame) fragment(id, offset uint16, more bool) []byte {
	if f.ipv6() {
		field := offset
		if more {
			field |= 1
		}
		f.Extensions = append(slices.Clone(f.Extensions), Extension{
			layers.IPProtocolIPv6Fragment, []byte{byte(field >> 8), byte(field), 0, 0, byte(id >> 8), byte(id)},
		})
		return f.Bytes()
	}
	packet := f.Bytes()
	ip := packet[14+4*len(f.VLANs):]
	if f.SourceMAC == nil {
		ip = packet
	}
	field := offset / 8
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(ip[4:], id)
	binary.BigEndian.PutUint16(ip[6:], field)
	setHeaderChecksum(ip[:int(ip[0]&15)*4])
	return packet
}
