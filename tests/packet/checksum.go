package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// internetSum is the one's complement sum of RFC 1071, not complemented, folded to 16 bits.
func internetSum(parts ...[]byte) uint16 {
	sum := uint64(0)
	for _, part := range parts {
		for len(part) >= 2 {
			sum += uint64(binary.BigEndian.Uint16(part))
			part = part[2:]
		}
		if len(part) == 1 {
			sum += uint64(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// internetChecksum is the value of a checksum field over these bytes, the field in them being 0.
func internetChecksum(parts ...[]byte) uint16 { return ^internetSum(parts...) }

// pseudoHeader is what transport checksums cover of the IP header.
func pseudoHeader(source, destination []byte, protocol uint8, length int) []byte {
	header := append(append([]byte{}, source...), destination...)
	header = binary.BigEndian.AppendUint32(header, uint32(length))
	return append(header, 0, 0, 0, protocol)
}

// VerifyChecksums checks every checksum of a whole, well-formed packet: IPv4 header, TCP, UDP, SCTP, ICMP, ICMPv6.
func VerifyChecksums(packet []byte, ethernet bool) error {
	offset := 0
	if ethernet {
		offset = 12
		for offset+2 <= len(packet) && binary.BigEndian.Uint16(packet[offset:]) == 0x8100 {
			offset += 4
		}
		offset += 2
	}
	if offset+1 > len(packet) {
		return errors.New("no IP header")
	}
	if packet[offset]>>4 == 4 {
		return verifyIPv4(packet[offset:])
	}
	return verifyIPv6(packet[offset:])
}

func verifyIPv4(ip []byte) error {
	header := int(ip[0]&15) * 4
	length := int(binary.BigEndian.Uint16(ip[2:]))
	if length > len(ip) || header > length {
		return fmt.Errorf("IPv4 lengths %d and %d in %d bytes", header, length, len(ip))
	}
	if internetSum(ip[:header]) != 0xffff {
		return errors.New("wrong IPv4 header checksum")
	}
	return verifyTransport(ip[12:16], ip[16:20], ip[9], ip[header:length], false)
}

func verifyIPv6(ip []byte) error {
	length := 40 + int(binary.BigEndian.Uint16(ip[4:]))
	if length > len(ip) {
		return fmt.Errorf("IPv6 length %d in %d bytes", length, len(ip))
	}
	next, offset := ip[6], 40
	for next == 0 || next == 43 || next == 60 {
		next, offset = ip[offset], offset+int(ip[offset+1])*8+8
	}
	return verifyTransport(ip[8:24], ip[24:40], next, ip[offset:length], true)
}

func verifyTransport(source, destination []byte, protocol uint8, segment []byte, ipv6 bool) error {
	if protocol == protocolSCTP {
		return verifySCTP(segment)
	}
	pseudo := pseudoHeader(source, destination, protocol, len(segment))
	switch protocol {
	case 1:
		pseudo = nil
	case 6, 58:
	case 17:
		field := binary.BigEndian.Uint16(segment[6:])
		if field == 0 && !ipv6 {
			return nil
		}
		if field == 0 {
			return errors.New("UDP over IPv6 without checksum")
		}
	default:
		return fmt.Errorf("protocol %d has no checksum we know", protocol)
	}
	if internetSum(pseudo, segment) != 0xffff {
		return fmt.Errorf("wrong checksum of protocol %d", protocol)
	}
	return nil
}

// verifySCTP checks a CRC32c, of the packet with a field of 0.
func verifySCTP(packet []byte) error {
	zeroed := slices.Clone(packet)
	clear(zeroed[8:12])
	if binary.LittleEndian.Uint32(packet[8:]) != castagnoli(zeroed) {
		return errors.New("wrong CRC32c of SCTP")
	}
	return nil
}
