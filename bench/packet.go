package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
)

// What the packets are made of. The harness varies the fields that hold zero here; see harness.bpf.c.
const (
	frameBytes    = 96
	templateBytes = 80 // of the frame, restored by the harness before each run
	etherBytes    = 14
	ipv4Bytes     = 20
	ipv6Bytes     = 40
	tcpBytes      = 20
	udpBytes      = 8
	ttl           = 64

	portFirst = 1024
	portBits  = 15
)

// kind is a kind of packet: the packets of one kind have the same shape.
type kind struct {
	Family   compile.Family
	Protocol compile.Protocol
}

// ipBytes returns the length of the IP header.
func (k kind) ipBytes() int {
	if k.Family == compile.IPv6 {
		return ipv6Bytes
	}
	return ipv4Bytes
}

// packets are what a harness makes: packets of many flows to one destination.
type packets struct {
	kind
	to          net.HardwareAddr
	from        net.HardwareAddr
	clients     netip.Addr // its low 16 bits are zero; a flow's number takes their place
	destination netip.AddrPort
	syn         bool // of TCP: each packet opens a connection, else belongs to one that is open
}

// source returns where the packets of a flow come from, by its number.
func (p packets) source(flow uint32) netip.AddrPort {
	raw := p.clients.AsSlice()
	binary.BigEndian.PutUint16(raw[len(raw)-2:], uint16(flow>>portBits))
	client, _ := netip.AddrFromSlice(raw) // as long as it was
	return netip.AddrPortFrom(client, portFirst+uint16(flow&(1<<portBits-1)))
}

// frame returns the frame of which the harness varies the client's address and port, which are zero.
func (p packets) frame() []byte {
	frame := make([]byte, frameBytes)
	copy(frame, p.to)
	copy(frame[6:], p.from)
	ip, transport := frame[etherBytes:], frame[etherBytes+p.ipBytes():]
	for i := range transport {
		transport[i] = byte(i)
	}
	p.writeTransport(transport)
	if p.Family == compile.IPv6 {
		binary.BigEndian.PutUint16(frame[12:], 0x86dd)
		p.writeIPv6(ip)
	} else {
		binary.BigEndian.PutUint16(frame[12:], 0x0800)
		p.writeIPv4(ip)
	}
	field := transport[16:18] // of TCP
	if p.Protocol == compile.UDP {
		field = transport[6:8]
	}
	binary.BigEndian.PutUint16(field, ^transportSum(ip[:frameBytes-etherBytes], p.kind))
	return frame
}

func (p packets) writeIPv4(ip []byte) {
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], frameBytes-etherBytes)
	binary.BigEndian.PutUint16(ip[6:], 0x4000) // don't fragment
	ip[8], ip[9] = ttl, byte(p.Protocol)
	copy(ip[12:], p.clients.AsSlice())
	copy(ip[16:], p.destination.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:ipv4Bytes]))
}

func (p packets) writeIPv6(ip []byte) {
	ip[0] = 0x60
	binary.BigEndian.PutUint16(ip[4:], frameBytes-etherBytes-ipv6Bytes)
	ip[6], ip[7] = byte(p.Protocol), ttl
	copy(ip[8:], p.clients.AsSlice())
	copy(ip[24:], p.destination.Addr().AsSlice())
}

func (p packets) writeTransport(header []byte) {
	clear(header[:tcpBytes])
	binary.BigEndian.PutUint16(header[2:], p.destination.Port())
	if p.Protocol == compile.UDP {
		binary.BigEndian.PutUint16(header[4:], uint16(len(header)))
		return
	}
	header[12] = tcpBytes / 4 << 4
	header[13] = 0x18 // PSH, ACK
	if p.syn {
		header[13] = 0x02
	}
	binary.BigEndian.PutUint16(header[14:], 0xffff) // window
}

// sum adds big-endian words to a one's complement sum.
func sum(start uint32, data []byte) uint16 {
	total := start
	for ; len(data) > 1; data = data[2:] {
		total += uint32(binary.BigEndian.Uint16(data))
	}
	for total > 0xffff {
		total = total&0xffff + total>>16
	}
	return uint16(total)
}

// transportSum returns the sum over the pseudo header and everything behind the IP header: 0xffff where the
// checksum in there is right.
func transportSum(ip []byte, k kind) uint16 {
	segment := ip[k.ipBytes():]
	addresses := ip[12:20]
	if k.Family == compile.IPv6 {
		addresses = ip[8:40]
	}
	pseudo := uint32(sum(0, addresses)) + uint32(k.Protocol) + uint32(len(segment))
	return sum(pseudo, segment)
}

// seen is what is checked of a packet that came out of a program.
type seen struct {
	to, from            net.HardwareAddr
	source, destination netip.AddrPort
	ttl                 uint8
}

// errChecksum says that a program left a packet that its receiver would discard.
var errChecksum = errors.New("wrong checksum")

// read reads a frame of the kind that frame made, and checks its checksums.
func (k kind) read(frame []byte) (seen, error) {
	if len(frame) != frameBytes {
		return seen{}, fmt.Errorf("a frame of %d bytes, not %d", len(frame), frameBytes)
	}
	ip, transport := frame[etherBytes:], frame[etherBytes+k.ipBytes():]
	sourceBytes, destinationBytes, left, protocol := ip[12:16], ip[16:20], ip[8], ip[9]
	if k.Family == compile.IPv6 {
		sourceBytes, destinationBytes, left, protocol = ip[8:24], ip[24:40], ip[7], ip[6]
	} else if sum(0, ip[:ipv4Bytes]) != 0xffff {
		return seen{}, fmt.Errorf("IPv4 header: %w", errChecksum)
	}
	if protocol != byte(k.Protocol) {
		return seen{}, fmt.Errorf("protocol %d, not %s", protocol, k.Protocol)
	}
	if transportSum(ip, k) != 0xffff {
		return seen{}, fmt.Errorf("%s header: %w", k.Protocol, errChecksum)
	}
	source, _ := netip.AddrFromSlice(sourceBytes)
	destination, _ := netip.AddrFromSlice(destinationBytes)
	return seen{
		to:          net.HardwareAddr(frame[0:6]),
		from:        net.HardwareAddr(frame[6:12]),
		source:      netip.AddrPortFrom(source, binary.BigEndian.Uint16(transport)),
		destination: netip.AddrPortFrom(destination, binary.BigEndian.Uint16(transport[2:])),
		ttl:         left,
	}, nil
}
