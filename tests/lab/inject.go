package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/loader"
)

// InjectUDP puts one datagram on the wire of the host's eth0, in a frame for a MAC of the caller's choice.
func (h *Host) InjectUDP(to net.HardwareAddr, source, destination netip.AddrPort, payload string) error {
	device, err := h.Link("eth0")
	if err != nil {
		return err
	}
	frame, err := udpFrame(device.Attrs().HardwareAddr, to, source, destination, payload)
	if err != nil {
		return fmt.Errorf("build a frame: %w", err)
	}
	wire, err := h.packetSocket("eth0", 0)
	if err != nil {
		return err
	}
	defer wire.Close()
	_, err = wire.Write(frame)
	return err
}

// udpFrame is a datagram with its checksums in an Ethernet frame.
func udpFrame(from, to net.HardwareAddr, source, destination netip.AddrPort, payload string) ([]byte, error) {
	ethernet := &layers.Ethernet{SrcMAC: from, DstMAC: to, EthernetType: layers.EthernetTypeIPv4}
	udp := &layers.UDP{SrcPort: layers.UDPPort(source.Port()), DstPort: layers.UDPPort(destination.Port())}
	src, dst := source.Addr().AsSlice(), destination.Addr().AsSlice()
	var network gopacket.SerializableLayer
	if source.Addr().Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src, DstIP: dst}
		network = ip
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			return nil, err
		}
	} else {
		ethernet.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: src, DstIP: dst}
		network = ip
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			return nil, err
		}
	}
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, options, ethernet, network, udp, gopacket.Payload(payload)); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

// Gateway returns the MAC that the host sends to for everything beyond its links. It is known once the host has sent
// something there.
func (h *Host) Gateway(family compile.Family) (net.HardwareAddr, error) {
	any4, any6 := netip.MustParseAddr("203.0.113.250"), netip.MustParseAddr("2001:db8:3::250")
	beyond := any4
	number := unix.AF_INET
	if family == compile.IPv6 {
		beyond, number = any6, unix.AF_INET6
	}
	routes, err := h.links.RouteGet(beyond.AsSlice())
	if err != nil {
		return nil, fmt.Errorf("route of %s to %s: %w", h.Role, beyond, err)
	}
	neighbours, err := loader.DumpWhole(func() ([]netlink.Neigh, error) { return h.links.NeighList(routes[0].LinkIndex, number) })
	if err != nil {
		return nil, fmt.Errorf("neighbours of %s: %w", h.Role, err)
	}
	for _, n := range neighbours {
		if n.IP.Equal(routes[0].Gw) && len(n.HardwareAddr) > 0 {
			return n.HardwareAddr, nil
		}
	}
	return nil, fmt.Errorf("%s does not know the MAC of %s", h.Role, routes[0].Gw)
}
