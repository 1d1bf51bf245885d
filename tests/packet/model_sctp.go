package packet

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

const protocolSCTP = 132

// Chunks of SCTP, by the types of RFC 9260, 3.2.
const (
	sctpData             = 0
	sctpInit             = 1
	sctpInitAck          = 2
	sctpAbort            = 6
	sctpShutdown         = 7
	sctpShutdownAck      = 8
	sctpCookieEcho       = 10
	sctpShutdownComplete = 14
)

func (p *parsed) sctp() bool { return p.protocol == protocolSCTP }

// connection tells whether the packet's protocol says where a connection begins and ends.
func (p *parsed) connection() bool { return p.tcp() || p.sctp() }

// parseSCTP reads the common header and the first chunk, which says in TCP's terms what becomes of the association.
func (p *parsed) parseSCTP(packet []byte) reason {
	if len(packet) < 16 || packet[12] == sctpInit && len(packet) < 20 {
		return malformed
	}
	p.transportLength = 12
	p.flags = tcpACK
	switch packet[12] {
	case sctpInit:
		if binary.BigEndian.Uint32(packet[4:]) == 0 { // its receiver has no tag yet
			p.flags = tcpSYN
		}
	case sctpInitAck:
		p.flags = tcpSYN | tcpACK
	case sctpAbort, sctpShutdownComplete:
		p.flags = tcpRST
	case sctpShutdown, sctpShutdownAck:
		p.flags = tcpFIN | tcpACK
	}
	p.readPorts(packet)
	return understood
}

// castagnoli is the checksum of SCTP.
func castagnoli(packet []byte) uint32 {
	return crc32.Checksum(packet, crc32.MakeTable(crc32.Castagnoli))
}

// rewriteSCTP writes other ports, in place. A checksum that was wrong is wrong in the same bits: two packets of one
// length have checksums as different as their bytes.
func (p *parsed) rewriteSCTP(frame, ports []byte) {
	packet := frame[p.transport : p.ip+p.length]
	before := castagnoli(packet)
	copy(packet, ports)
	field := packet[8:12]
	binary.LittleEndian.PutUint32(field, binary.LittleEndian.Uint32(field)^before^castagnoli(packet))
}

// abort returns the ABORT that answers the packet (RFC 9260, 8.4).
func (p *parsed) abort(frame []byte) []byte {
	packet := frame[p.transport:]
	abort := make([]byte, 16)
	copy(abort, p.tuple.reverse().portBytes())
	abort[12], abort[15] = sctpAbort, 4
	if p.opens() {
		copy(abort[4:8], packet[16:20]) // the tag that its sender wants
	} else {
		copy(abort[4:8], packet[4:8])
		abort[13] = 1 // its own tag, reflected
	}
	binary.LittleEndian.PutUint32(abort[8:], castagnoli(abort))
	answer := slices.Clone(frame[:p.transport])
	p.turnIP(answer, len(abort))
	return returned(append(answer, abort...))
}
