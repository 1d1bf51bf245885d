package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// ErrorFrame describes an ICMP or ICMPv6 message about a packet. What a program shall make of it is described by a
// changed copy, and built from the ground up.
type ErrorFrame struct {
	SourceMAC, DestinationMAC net.HardwareAddr
	From, To                  netip.Addr
	Message                   Message
	Rest                      uint32 // the MTU of too big, the router of a redirect in IPv4
	TTL                       uint8
	Quote                     []byte // an IP packet, as much as there is of it
}

// Message is a type and a code in both families.
type Message struct{ Type4, Code4, Type6, Code6 uint8 }

// The messages of the tests, by what they say.
var (
	TooBig          = Message{3, 4, 2, 0}
	PortUnreachable = Message{3, 3, 1, 4}
	TimeExceeded    = Message{11, 0, 3, 0}
	BadParameter    = Message{12, 0, 4, 0}
	Redirected      = Message{5, 1, 137, 0}
	EchoRequest     = Message{8, 0, 128, 0}
	EchoReply       = Message{0, 0, 129, 0}
)

// Bytes builds the packet.
func (f ErrorFrame) Bytes() []byte {
	message := []byte{f.Message.Type4, f.Message.Code4, 0, 0}
	if !f.From.Is4() {
		message[0], message[1] = f.Message.Type6, f.Message.Code6
	}
	message = binary.BigEndian.AppendUint32(message, f.Rest)
	if !f.From.Is4() && f.Message == Redirected {
		message = append(message, redirectOptions(f.Quote)...)
	}
	message = append(message, f.Quote...)
	source, destination := f.From.AsSlice(), f.To.AsSlice()
	ethernet := append(slices.Clone(f.DestinationMAC), f.SourceMAC...)
	if f.From.Is4() {
		binary.BigEndian.PutUint16(message[2:], internetChecksum(message))
		header := icmpIPv4Header(source, destination, len(message))
		header[8] = f.TTL
		setHeaderChecksum(header)
		return slices.Concat(ethernet, []byte{0x08, 0x00}, header, message)
	}
	binary.BigEndian.PutUint16(message[2:], internetChecksum(pseudoHeader(source, destination, 58, len(message)), message))
	header := []byte{0x60, 0, 0, 0, byte(len(message) >> 8), byte(len(message)), 58, f.TTL}
	return slices.Concat(ethernet, []byte{0x86, 0xdd}, header, source, destination, message)
}

// redirectOptions are what an ICMPv6 redirect has before the packet: where to, and the router's MAC.
func redirectOptions(quote []byte) []byte {
	addresses := make([]byte, 32)
	copy(addresses, netip.MustParseAddr("fe80::1").AsSlice())
	options := append(addresses, 2, 1, 2, 0, 0, 0, 0, 1)
	return append(options, 4, byte(1+(len(quote)+7)/8), 0, 0, 0, 0, 0, 0)
}

// setHeaderChecksum writes the checksum of an IPv4 header.
func setHeaderChecksum(header []byte) {
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], internetChecksum(header))
}

// quoteOf returns the IP packet of a frame without tags, the first bytes of it.
func quoteOf(frame Frame, most int) []byte {
	packet := frame.Bytes()[14:]
	return packet[:min(most, len(packet))]
}
