package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// The headers of a frame of udpFrame, and how much of the datagram goes in a fragment.
const (
	ethernetHeader  = 14
	headersIPv4     = ethernetHeader + 20
	headersIPv6     = ethernetHeader + 40
	fragmentPayload = 1400
)

// InjectFragments puts the fragments of a datagram on the wire of the host's eth0, in an order of the caller's: any may
// come twice, or not at all.
func (h *Host) InjectFragments(to net.HardwareAddr, source, destination netip.AddrPort, id uint16, payload string, order func(count int) []int) error {
	device, err := h.Link("eth0")
	if err != nil {
		return err
	}
	frame, err := udpFrame(device.Attrs().HardwareAddr, to, source, destination, payload)
	if err != nil {
		return fmt.Errorf("build a datagram: %w", err)
	}
	wire, err := h.packetSocket("eth0", 0)
	if err != nil {
		return err
	}
	defer wire.Close()
	fragments := cut(frame, id)
	for _, i := range order(len(fragments)) {
		if _, err := wire.Write(fragments[i]); err != nil {
			return fmt.Errorf("send fragment %d of %s: %w", i, h.Role, err)
		}
	}
	return nil
}

// cut makes fragments of a frame.
func cut(frame []byte, id uint16) (fragments [][]byte) {
	headers, write := headersIPv4, fragmentIPv4
	if frame[ethernetHeader]>>4 == 6 {
		headers, write = headersIPv6, fragmentIPv6
	}
	datagram := frame[headers:]
	for offset := 0; offset < len(datagram); offset += fragmentPayload {
		field := uint16(offset)
		end := min(offset+fragmentPayload, len(datagram))
		fragments = append(fragments, write(slices.Clone(frame[:headers]), datagram[offset:end], field, end < len(datagram), id))
	}
	return fragments
}

// fragmentIPv4 completes a fragment of IPv4.
func fragmentIPv4(frame, part []byte, offset uint16, more bool, id uint16) []byte {
	ip := frame[ethernetHeader:]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(part)))
	binary.BigEndian.PutUint16(ip[4:], id)
	field := offset / 8
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(ip[6:], field)
	binary.BigEndian.PutUint16(ip[10:], 0)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	return append(frame, part...)
}

// fragmentIPv6 completes a fragment of IPv6, which has a header of its own for that.
func fragmentIPv6(frame, part []byte, offset uint16, more bool, id uint16) []byte {
	ip := frame[ethernetHeader:]
	binary.BigEndian.PutUint16(ip[4:], uint16(8+len(part)))
	next := ip[6]
	ip[6] = 44
	field := offset
	if more {
		field |= 1
	}
	frame = append(frame, next, 0)
	frame = binary.BigEndian.AppendUint16(frame, field)
	frame = binary.BigEndian.AppendUint32(frame, uint32(id))
	return append(frame, part...)
}
