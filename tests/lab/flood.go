package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Flood describes SYNs of clients that do not exist. Their answers come to the host, which has no use for them.
type Flood struct {
	To    netip.AddrPort
	Count int           // at most so many, each from another address
	Rate  int           // in a second; 0: as fast as can be
	Limit time.Duration // at most so long
}

// floodSources are the networks that they claim to be from. Nodes route them to the client.
var floodSources = [2]netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("2001:db8:64::/64")}

// Flood puts SYNs on the wire of the host's eth0, for its gateway, and returns how many.
func (h *Host) Flood(f Flood) (sent int, err error) {
	family := compile.IPv4
	if f.To.Addr().Is6() {
		family = compile.IPv6
	}
	gateway, err := h.Gateway(family)
	if err != nil {
		return 0, err
	}
	device, err := h.Link("eth0")
	if err != nil {
		return 0, err
	}
	frame, err := newSYN(device.Attrs().HardwareAddr, gateway, f.To)
	if err != nil {
		return 0, fmt.Errorf("build a SYN: %w", err)
	}
	wire, err := h.packetSocket("eth0", 0)
	if err != nil {
		return 0, err
	}
	defer wire.Close()
	// Addresses follow each other, from a random one on: no two alike.
	first := rand.Uint32()
	for begin := time.Now(); sent < f.Count && time.Since(begin) < f.Limit; sent++ {
		for f.Rate > 0 && time.Since(begin) < time.Duration(sent)*time.Second/time.Duration(f.Rate) {
			time.Sleep(time.Millisecond)
		}
		frame.from(first + uint32(sent))
		switch _, err := wire.Write(frame.bytes); {
		case errors.Is(err, unix.ENOBUFS):
			sent-- // the wire is full: once more
		case err != nil:
			return sent, fmt.Errorf("send SYN %d: %w", sent, err)
		}
	}
	return sent, nil
}

// syn is the frame of a SYN whose sender can be changed in place.
type syn struct {
	bytes       []byte
	source      []byte // its source address
	tcp         []byte
	ip          []byte     // its IPv4 header; nil of IPv6
	pseudoWords []byte     // both addresses
	base        netip.Addr // of the network it claims to be from
}

// newSYN builds the frame of a SYN that has no sender yet.
func newSYN(from, to net.HardwareAddr, destination netip.AddrPort) (*syn, error) {
	tcp := &layers.TCP{DstPort: layers.TCPPort(destination.Port()), SYN: true, Window: 64240}
	ethernet := &layers.Ethernet{SrcMAC: from, DstMAC: to, EthernetType: layers.EthernetTypeIPv4}
	var network gopacket.SerializableLayer
	base := floodSources[0].Addr()
	if destination.Addr().Is4() {
		network = &layers.IPv4{
			Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: base.AsSlice(), DstIP: destination.Addr().AsSlice(),
		}
	} else {
		base = floodSources[1].Addr()
		ethernet.EthernetType = layers.EthernetTypeIPv6
		network = &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: base.AsSlice(), DstIP: destination.Addr().AsSlice(),
		}
	}
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true}, ethernet, network, tcp); err != nil {
		return nil, err
	}
	const header, ipv4Length, ipv6Length = 14, 20, 40
	frame := &syn{bytes: buffer.Bytes(), base: base}
	if destination.Addr().Is4() {
		frame.ip, frame.tcp = frame.bytes[header:header+ipv4Length], frame.bytes[header+ipv4Length:]
		frame.pseudoWords = frame.ip[12:20]
		frame.source = frame.ip[12:16]
		return frame, nil
	}
	frame.tcp = frame.bytes[header+ipv6Length:]
	frame.pseudoWords = frame.bytes[header+8 : header+ipv6Length]
	frame.source = frame.pseudoWords[:16]
	return frame, nil
}

// from makes the SYN one of the client with that number, from a random port and with a random sequence number.
func (s *syn) from(number uint32) {
	const hostBits = 22 // of an IPv4 prefix of ten bits
	copy(s.source, s.base.AsSlice())
	host := s.source[len(s.source)-4:]
	binary.BigEndian.PutUint32(host, binary.BigEndian.Uint32(host)|number&(1<<hostBits-1))
	binary.BigEndian.PutUint16(s.tcp[0:], 1024+uint16(rand.Uint32N(64512)))
	binary.BigEndian.PutUint32(s.tcp[4:], rand.Uint32())
	binary.BigEndian.PutUint16(s.tcp[16:], 0)
	sum := sumWords(s.tcp, sumWords(s.pseudoWords, uint32(layers.IPProtocolTCP)+uint32(len(s.tcp))))
	binary.BigEndian.PutUint16(s.tcp[16:], foldSum(sum))
	if s.ip != nil {
		binary.BigEndian.PutUint16(s.ip[10:], 0)
		binary.BigEndian.PutUint16(s.ip[10:], foldSum(sumWords(s.ip, 0)))
	}
}

// sumWords adds 16-bit words to a sum.
func sumWords(words []byte, sum uint32) uint32 {
	for i := 0; i < len(words); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(words[i:]))
	}
	return sum
}

// foldSum turns a sum into a checksum.
func foldSum(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
