package packet

import (
	"encoding/binary"
	"net/netip"
)

// parsed is what the model knows of a packet's headers.
type parsed struct {
	tuple           tuple
	protocol        uint8
	ip              int // offset of the IP header
	transport       int // offset of the transport header
	transportLength int
	length          int // of the IP packet
	ttl             uint8
	flags           uint8 // of TCP; of SCTP what its first chunk says
	ipv6            bool
	tagged          bool
	part            part // of a datagram
}

// tuple is where a packet comes from and goes to. An IPv4 address in it is never v4-mapped.
type tuple struct{ from, to netip.AddrPort }

func (t tuple) reverse() tuple { return tuple{t.to, t.from} }

// reason is why a packet is left alone.
type reason int

const (
	understood reason = iota
	notOurs           // not IP, or a protocol without ports
	icmp              // ICMP or ICMPv6, in its family
	malformed
	fragment
	extension
)

const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58

	tcpFIN = 1
	tcpSYN = 2
	tcpRST = 4
	tcpACK = 16

	maxTags       = 2
	maxExtensions = 4
)

func (p *parsed) tcp() bool { return p.protocol == protocolTCP }

// opens tells whether it is the first packet of a connection.
func (p *parsed) opens() bool {
	return p.flags&(tcpSYN|tcpACK|tcpRST|tcpFIN) == tcpSYN
}

// parse reads the headers of a frame.
func parse(frame []byte) (parsed, reason) {
	var p parsed
	protocol, ok := p.parseEthernet(frame)
	if !ok {
		return p, malformed
	}
	var why reason
	switch protocol {
	case 0x0800:
		why = p.parseIPv4(frame[p.ip:])
	case 0x86dd:
		why = p.parseIPv6(frame[p.ip:])
	default:
		return p, notOurs
	}
	if why != understood {
		return p, why
	}
	if p.protocol == p.icmpProtocol() {
		return p, icmp
	}
	if !hasPorts(p.protocol) {
		return p, notOurs
	}
	rest := p.ip + p.length - p.transport
	if rest < 0 {
		return p, malformed
	}
	return p, p.parseTransport(frame[p.transport:][:rest])
}

// icmpProtocol is what ICMP is called in the packet's family.
func (p *parsed) icmpProtocol() uint8 {
	if p.ipv6 {
		return protocolICMPv6
	}
	return protocolICMP
}

// parseEthernet returns the protocol behind the tags.
func (p *parsed) parseEthernet(frame []byte) (uint16, bool) {
	if len(frame) < 14 {
		return 0, false
	}
	protocol := binary.BigEndian.Uint16(frame[12:])
	p.ip = 14
	for tags := 0; tags < maxTags && (protocol == 0x8100 || protocol == 0x88a8); tags++ {
		if len(frame) < p.ip+4 {
			return 0, false
		}
		protocol = binary.BigEndian.Uint16(frame[p.ip+2:])
		p.ip += 4
		p.tagged = true
	}
	return protocol, true
}

func (p *parsed) parseIPv4(ip []byte) reason {
	if len(ip) < 20 {
		return malformed
	}
	header := int(ip[0]&15) * 4
	p.length = int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || header < 20 || p.length < header || p.length > len(ip) {
		return malformed
	}
	p.ttl, p.protocol = ip[8], ip[9]
	p.tuple.from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:])), 0)
	p.tuple.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:])), 0)
	p.transport = p.ip + header
	if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 { // more fragments, or an offset
		return fragment
	}
	return understood
}

func (p *parsed) parseIPv6(ip []byte) reason {
	if len(ip) < 40 || ip[0]>>4 != 6 {
		return malformed
	}
	p.length = 40 + int(binary.BigEndian.Uint16(ip[4:]))
	source, destination := netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
	if p.length > len(ip) || source.Is4In6() || destination.Is4In6() {
		return malformed // an IPv4-mapped address is never on the wire (RFC 4942, 2.2)
	}
	p.ipv6, p.ttl = true, ip[7]
	p.tuple = tuple{netip.AddrPortFrom(source, 0), netip.AddrPortFrom(destination, 0)}
	return p.parseExtensions(ip)
}

// parseExtensions walks the IPv6 header chain.
func (p *parsed) parseExtensions(ip []byte) reason {
	next, offset := ip[6], 40
	for walked := 0; ; walked++ {
		if next != 0 && next != 43 && next != 60 && next != 44 {
			p.protocol, p.transport = next, p.ip+offset
			return understood
		}
		if walked == maxExtensions {
			return extension
		}
		if next == 44 {
			p.transport = p.ip + offset
			return fragment
		}
		if offset+8 > len(ip) {
			return malformed
		}
		if next == 43 && ip[offset+3] != 0 {
			return extension // segments left: for another node, whose address the checksum covers
		}
		next, offset = ip[offset], offset+int(ip[offset+1])*8+8
	}
}

// hasPorts tells whether the ports of a protocol are translated.
func hasPorts(protocol uint8) bool {
	return protocol == protocolTCP || protocol == protocolUDP || protocol == protocolSCTP
}

func (p *parsed) parseTransport(segment []byte) reason {
	if p.sctp() {
		return p.parseSCTP(segment)
	}
	header := 8
	if p.tcp() {
		header = 20
	}
	if len(segment) < header {
		return malformed
	}
	if p.tcp() {
		p.flags, p.transportLength = segment[13], int(segment[12]>>4)*4
		if p.transportLength < 20 || p.transportLength > len(segment) {
			return malformed
		}
	} else {
		p.transportLength = header
		if said := int(binary.BigEndian.Uint16(segment[4:])); said < header || said > len(segment) {
			return malformed
		}
	}
	p.readPorts(segment)
	return understood
}

func (p *parsed) readPorts(segment []byte) {
	p.tuple.from = netip.AddrPortFrom(p.tuple.from.Addr(), binary.BigEndian.Uint16(segment))
	p.tuple.to = netip.AddrPortFrom(p.tuple.to.Addr(), binary.BigEndian.Uint16(segment[2:]))
}
