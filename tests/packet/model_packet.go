package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// adjust returns a checksum field after some of the bytes it covers have changed (RFC 1624).
func adjust(field []byte, from, to []byte) {
	sum := uint32(^binary.BigEndian.Uint16(field))
	sum += uint32(^internetSum(from)) + uint32(internetSum(to))
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(field, ^uint16(sum))
}

// addresses returns the place of both addresses in the IP header.
func (p *parsed) addresses(frame []byte) []byte {
	if p.ipv6 {
		return frame[p.ip+8:][:32]
	}
	return frame[p.ip+12:][:8]
}

// checksum returns the place of the transport checksum.
func (p *parsed) checksum(frame []byte) []byte {
	if p.tcp() {
		return frame[p.transport+16:][:2]
	}
	return frame[p.transport+6:][:2]
}

func (t tuple) addressBytes() []byte {
	return append(t.from.Addr().AsSlice(), t.to.Addr().AsSlice()...)
}

func (t tuple) portBytes() []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, t.from.Port()), t.to.Port())
}

// rewrite returns the packet with another tuple.
func (p *parsed) rewrite(frame []byte, to tuple) []byte {
	frame = slices.Clone(frame)
	before := append(p.tuple.addressBytes(), p.tuple.portBytes()...)
	after := append(to.addressBytes(), to.portBytes()...)
	if p.part != later {
		p.rewriteTransport(frame, before, after)
	}
	if !p.ipv6 {
		adjust(frame[p.ip+10:][:2], p.tuple.addressBytes(), to.addressBytes())
	}
	copy(p.addresses(frame), to.addressBytes())
	return frame
}

// rewriteTransport writes other ports, which are the last four bytes of a tuple's, in place.
func (p *parsed) rewriteTransport(frame, before, after []byte) {
	if p.sctp() {
		p.rewriteSCTP(frame, after[len(after)-4:])
		return
	}
	field := p.checksum(frame)
	none := !p.tcp() && field[0]|field[1] == 0
	if !none {
		adjust(field, before, after)
	}
	if !p.tcp() && !none && field[0]|field[1] == 0 {
		field[0], field[1] = 0xff, 0xff
	}
	copy(frame[p.transport:], after[len(after)-4:])
}

// hopped takes one from the TTL, in place.
func (p *parsed) hopped(frame []byte) []byte {
	if p.ipv6 {
		frame[p.ip+7]--
		return frame
	}
	before := slices.Clone(frame[p.ip+8:][:2])
	frame[p.ip+8]--
	adjust(frame[p.ip+10:][:2], before, frame[p.ip+8:][:2])
	return frame
}

// returned exchanges the MACs, in place.
func returned(frame []byte) []byte {
	destination := slices.Clone(frame[:6])
	copy(frame, frame[6:12])
	copy(frame[6:], destination)
	return frame
}

// reset returns the TCP reset that answers the packet (RFC 9293, 3.10.7.1).
func (p *parsed) reset(frame []byte) []byte {
	segment := frame[p.transport : p.ip+p.length]
	occupied := len(segment) - p.transportLength
	reset := slices.Clone(frame[:p.transport])
	tcp := make([]byte, 20)
	copy(tcp, p.tuple.reverse().portBytes())
	tcp[12] = 5 << 4
	if p.flags&tcpACK != 0 {
		copy(tcp[4:], segment[8:12])
		tcp[13] = tcpRST
	} else {
		for _, flag := range []uint8{tcpSYN, tcpFIN} {
			if p.flags&flag != 0 {
				occupied++
			}
		}
		binary.BigEndian.PutUint32(tcp[8:], binary.BigEndian.Uint32(segment[4:])+uint32(occupied))
		tcp[13] = tcpRST | tcpACK
	}
	back := p.tuple.reverse()
	source, destination := back.from.Addr().AsSlice(), back.to.Addr().AsSlice()
	pseudo := pseudoHeader(source, destination, protocolTCP, len(tcp))
	binary.BigEndian.PutUint16(tcp[16:], internetChecksum(pseudo, tcp))
	p.turnIP(reset, len(tcp))
	return returned(append(reset, tcp...))
}

// turnIP turns the IP header around for an answer with that much behind the headers, in place.
func (p *parsed) turnIP(frame []byte, transport int) {
	ip := frame[p.ip:]
	length := p.transport - p.ip + transport
	copy(p.addresses(frame), p.tuple.reverse().addressBytes())
	if p.ipv6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(length-40))
		ip[7] = 64
		return
	}
	before := slices.Clone(ip[:20])
	binary.BigEndian.PutUint16(ip[2:], uint16(length))
	ip[8] = 64
	adjust(ip[10:12], before[2:4], ip[2:4])
	adjust(ip[10:12], before[8:10], ip[8:10])
}

// icmpError is an error message, named for both families.
type icmpError struct {
	type4, code4, type6, code6 uint8
	mtu                        int
	from                       netip.Addr
}

const mostQuoted = 508

// icmp returns the error about the packet, or false where too little of it would be quoted.
func (p *parsed) icmp(frame []byte, e icmpError) ([]byte, bool) {
	quote := frame[p.ip:][:min(p.length, mostQuoted)&^3]
	end := p.transport - p.ip + 8
	if p.tcp() {
		end = p.transport - p.ip + 18
	} else if p.sctp() {
		end = p.transport - p.ip + 10
	}
	if len(quote) < end {
		return nil, false
	}
	message := []byte{e.type4, e.code4, 0, 0, 0, 0, 0, 0}
	if p.ipv6 {
		message[0], message[1] = e.type6, e.code6
	}
	binary.BigEndian.PutUint32(message[4:], uint32(e.mtu))
	message = append(message, quote...)
	source, destination := e.from.AsSlice(), p.tuple.from.Addr().AsSlice()
	answer := slices.Clone(frame[:p.ip])
	if p.ipv6 {
		pseudo := pseudoHeader(source, destination, 58, len(message))
		binary.BigEndian.PutUint16(message[2:], internetChecksum(pseudo, message))
		answer = append(answer, 0x60, 0, 0, 0, byte(len(message)>>8), byte(len(message)), 58, 64)
		answer = append(append(answer, source...), destination...)
	} else {
		binary.BigEndian.PutUint16(message[2:], internetChecksum(message))
		answer = append(answer, icmpIPv4Header(source, destination, len(message))...)
	}
	return returned(append(answer, message...)), true
}

func icmpIPv4Header(source, destination []byte, message int) []byte {
	header := make([]byte, 20)
	header[0], header[1] = 0x45, 0xc0
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+message))
	header[8], header[9] = 64, 1
	copy(header[12:], source)
	copy(header[16:], destination)
	binary.BigEndian.PutUint16(header[10:], internetChecksum(header))
	return header
}
