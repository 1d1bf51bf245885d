package packet

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Arrival is a packet, and the program and device that it meets.
type Arrival struct {
	Program Program
	Device  *Device
	Packet  []byte
}

// RandomServices are services of every sort in both families and protocols, with backends of all sorts.
func RandomServices() []compile.Service {
	hosts := NewHosts()
	sorts := []struct {
		name     string
		backends []Pair
		local    bool
	}{
		{"mixed", []Pair{hosts.Remote, hosts.OtherRemote, hosts.Neighbour, hosts.RemoteSecond, hosts.OtherPod}, false},
		{"sticky", []Pair{hosts.Remote, hosts.OtherRemote, hosts.Neighbour, hosts.RemoteSecond, hosts.OtherPod}, false},
		{"busy", []Pair{hosts.Remote, hosts.OtherRemote, hosts.Neighbour, hosts.RemoteSecond, hosts.OtherPod}, false},
		{"local", []Pair{hosts.Pod, hosts.OtherPod, hosts.BarePod}, true},
		{"remote", []Pair{hosts.Remote}, false},
		{"self", []Pair{hosts.Pod}, true},
		{"bare", []Pair{hosts.BarePod}, true},
		{"second", []Pair{hosts.RemoteSecond}, false},
		{"third", []Pair{hosts.RemoteThird}, false},
		{"fourth", []Pair{hosts.RemoteFourth}, false},
		{"bridge", []Pair{hosts.RemoteBridge}, false},
		{"silent", []Pair{hosts.Silent}, false},
		{"blackhole", []Pair{hosts.Blackhole}, false},
		{"unrouted", []Pair{hosts.Unrouted}, false},
		{"node", []Pair{hosts.NodeEth1}, false},
		{"nolocal", nil, false},
		{"empty", nil, false},
	}
	var all []compile.Service
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP, compile.SCTP} {
			for i, sort := range sorts {
				var backends []compile.Backend
				for _, host := range sort.backends {
					backends = append(backends, compile.Backend{Address: host.Port(family, 8000+uint16(i)), Local: sort.local})
				}
				service := newService(family, protocol, sort.name, uint16(servicePortBase+i), backends...)
				service.NoEndpoints = sort.name == "empty"
				if service.Restricted = sort.name == "local"; service.Restricted {
					service.Sources = []netip.Prefix{prefixOf(hosts.Client, family), prefixOf(hosts.Pod, family)}
				}
				if sort.name == "busy" {
					service.InsideAlgorithm, service.OutsideAlgorithm = maps.AlgorithmLeastConnections, maps.AlgorithmLeastConnections
				}
				if sort.name == "sticky" {
					service.AffinityTimeout = time.Hour
				}
				all = append(all, service)
			}
		}
	}
	return all
}

// prefixOf returns the prefix of one address.
func prefixOf(host Pair, family compile.Family) netip.Prefix {
	address := host.Of(family)
	return netip.PrefixFrom(address, address.BitLen())
}

// servicePortBase is the port of the first of RandomServices.
const servicePortBase = 80

// Generator makes random packets: of new and of known flows, most of them well-formed, some bent.
type Generator struct {
	rand     *rand.Rand
	node     *Node
	model    *Model // whose flows are answered and continued
	hosts    Hosts
	services []compile.Service
	arrival  Program // what packets from outside meet first
}

// NewGenerator returns a generator whose packets follow from the seed and from what the programs pick.
func NewGenerator(seed uint64, w *World, m *Model, services []compile.Service, arrival Program) *Generator {
	return &Generator{
		rand: rand.New(rand.NewPCG(seed, 0)), node: w.Node, model: m, hosts: NewHosts(), services: services, arrival: arrival,
	}
}

// one returns true once in n times.
func (g *Generator) one(n int) bool { return g.rand.IntN(n) == 0 }

func choose[T any](g *Generator, from ...T) T { return from[g.rand.IntN(len(from))] }

// Next returns the next packet.
func (g *Generator) Next() Arrival {
	var arrival Arrival
	var frame Frame
	switch {
	case len(g.model.born) > 0 && g.one(12):
		arrival = g.quoting()
		arrival.Packet = g.bend(arrival.Packet)
		return arrival
	case len(g.model.born) > 0 && !g.one(3):
		arrival, frame = g.known()
	default:
		arrival, frame = g.fresh()
	}
	g.vary(&frame)
	arrival.Packet = g.bend(g.bytes(frame))
	return arrival
}

// bytes builds a packet, now and then as a fragment of one of few datagrams. Long ones may not be cut: what is left of
// one that has opened a flow does not show the port that the flow has got.
func (g *Generator) bytes(frame Frame) []byte {
	short := len(frame.Payload) < 1000
	frame.MayBeCut = short && g.one(2)
	if !short || !g.one(12) {
		return frame.Bytes()
	}
	return frame.fragment(uint16(g.rand.IntN(4)), choose[uint16](g, 0, 0, 8, 16, 1480), !g.one(3))
}

// quoting returns an ICMP error about a packet of a flow, or something like it, where packets of the flow appear.
func (g *Generator) quoting() Arrival {
	arrival, about := g.known()
	g.vary(&about)
	about.From, about.To = about.To, about.From // it went the other way than the error does
	family := compile.IPv4
	if about.ipv6() {
		family = compile.IPv6
	}
	about.SourceMAC, about.DestinationMAC, about.VLANs = gatewayMAC(), gatewayMAC(), nil
	packet := about.Bytes()[14:]
	frame := ErrorFrame{
		SourceMAC: gatewayMAC(), DestinationMAC: arrival.Device.MAC, TTL: choose[uint8](g, 1, 2, 64, 64, 255),
		From:    choose(g, about.To.Addr(), g.hosts.Gateway.Of(family), g.nodeAddress(family)),
		To:      about.From.Addr(),
		Message: choose(g, TooBig, TooBig, PortUnreachable, TimeExceeded, BadParameter, Redirected, EchoRequest),
		Rest:    g.rand.Uint32N(1500),
		Quote:   packet[:min(len(packet), choose(g, 28, 48, 80, 200, 500, g.rand.IntN(600)))],
	}
	if g.one(20) {
		frame.To = g.nodeAddress(family)
	}
	if frame.Message == EchoRequest && !g.one(4) {
		frame.To = choose(g, g.hosts.ClusterIP, g.hosts.LoadBalancer, g.hosts.External).Of(family)
	}
	arrival.Packet = frame.Bytes()
	return arrival
}

// fresh returns a packet that may open a flow, or is nobody's.
func (g *Generator) fresh() (Arrival, Frame) {
	service := g.services[g.rand.IntN(len(g.services))]
	family, protocol := service.ID.Family, service.ID.Protocol
	to := service.Frontends[g.rand.IntN(len(service.Frontends))].Address
	if to.Addr().IsUnspecified() && !g.one(50) {
		to = netip.AddrPortFrom(g.nodeAddress(family), to.Port())
	}
	if g.one(20) {
		to = netip.AddrPortFrom(choose(g, to.Addr(), g.nodeAddress(family), g.hosts.Remote.Of(family), g.hosts.NobodysIP.Of(family), g.hosts.LeftIP.Of(family)), g.port())
	}
	program, device, from := g.arriveAnywhere(family)
	frame := g.frame(device, netip.AddrPortFrom(from, g.port()), to, protocol)
	if program == NodeEgress || program == PodEgress {
		frame.SourceMAC, frame.DestinationMAC = frame.DestinationMAC, frame.SourceMAC
		frame.From = netip.AddrPortFrom(choose(g, frame.From.Addr(), g.nodeAddress(family)), choose(g, frame.From.Port(), to.Port()))
		frame.To = netip.AddrPortFrom(choose(g, g.hosts.Client, g.hosts.Remote, g.hosts.OtherClient).Of(family), g.port())
	}
	if program == NodeEgress && g.one(2) { // of this host itself
		frame.From, frame.To = netip.AddrPortFrom(frame.From.Addr(), g.port()), to
	}
	return Arrival{Program: program, Device: device}, frame
}

// arriveAnywhere returns a program with a device and a source that fit.
func (g *Generator) arriveAnywhere(family compile.Family) (Program, *Device, netip.Addr) {
	hosts := g.hosts
	switch g.rand.IntN(10) {
	case 0, 1:
		device := choose(g, "pod0", "pod1", "pod2")
		source := map[string]Pair{"pod0": hosts.Pod, "pod1": hosts.OtherPod, "pod2": hosts.BarePod}[device]
		return choose(g, PodIngress, PodIngress, PodIngress, PodEgress), g.node.Device(device), source.Of(family)
	case 2, 3:
		return NodeEgress, g.node.Device(choose(g, "eth0", "eth1", "br0p")), choose(g, hosts.NodeEth0, hosts.Pod).Of(family)
	default:
		device := choose(g, "eth0", "eth0", "eth0", "eth1", "eth2", "eth3", "br0p")
		source := choose(g, hosts.Client, hosts.Client, hosts.OtherClient, hosts.SecondClient, hosts.Remote, hosts.Unrouted)
		return g.meets(g.node.Device(device)), g.node.Device(device), source.Of(family)
	}
}

// nodeAddress returns an address of the node.
func (g *Generator) nodeAddress(family compile.Family) netip.Addr {
	return choose(g, g.hosts.NodeEth0, g.hosts.NodeEth1, g.hosts.PodGateway).Of(family)
}

// port returns one of few client ports, so that flows meet, or any.
func (g *Generator) port() uint16 {
	if g.one(4) {
		return uint16(g.rand.UintN(65536))
	}
	return choose[uint16](g, 1024, 40000, 61000, 65535) + uint16(g.rand.UintN(32)) - 16
}

// known returns a packet with the tuple of a half that there is or has been, where packets of it appear.
func (g *Generator) known() (Arrival, Frame) {
	id := g.model.born[len(g.model.born)-1-min(g.rand.IntN(len(g.model.born)), g.rand.IntN(64))]
	if g.one(8) {
		id = g.model.born[g.rand.IntN(len(g.model.born))]
	}
	program, device := g.whereKnown(id)
	return Arrival{Program: program, Device: device}, g.frame(device, id.tuple.from, id.tuple.to, compile.Protocol(id.protocol))
}

func (g *Generator) whereKnown(id flowID) (Program, *Device) {
	for _, device := range g.node.devices {
		if device.Pod != 0 && device.Record.EdgeId == id.edge && !g.one(20) {
			return choose(g, PodIngress, PodEgress), device
		}
	}
	if g.one(20) {
		return PodIngress, g.node.Device(choose(g, "pod0", "pod1"))
	}
	device := g.node.Device(choose(g, "eth0", "eth0", "eth0", "eth0", "eth1", "br0p"))
	return choose(g, g.meets(device), g.meets(device), g.meets(device), NodeEgress), device
}

// meets returns the program that packets from outside meet on a device. One with an XDP program is always one
// that XDP programs may redirect to: the agent sees to that.
func (g *Generator) meets(device *Device) Program {
	if !device.XDP {
		return NodeIngress
	}
	return g.arrival
}

// frame returns a packet for a device's MAC.
func (g *Generator) frame(device *Device, from, to netip.AddrPort, protocol compile.Protocol) Frame {
	destination := device.MAC
	if device.Record.Master != 0 && !g.one(4) {
		destination = net.HardwareAddr(device.Record.MasterMac[:])
	}
	return Frame{
		SourceMAC: gatewayMAC(), DestinationMAC: destination, From: from, To: to, Protocol: protocol, TTL: 64,
		SCTP: SCTPFields{Chunk: sctpInit, InitiateTag: g.rand.Uint32()},
		TCP:  TCPFields{SYN: true, Sequence: g.rand.Uint32(), Acknowledged: g.rand.Uint32(), Window: 100},
	}
}

// vary changes what a well-formed packet may have or not.
func (g *Generator) vary(f *Frame) {
	f.TCP.SYN = !g.one(3)
	f.TCP.ACK = g.one(3)
	f.TCP.FIN = g.one(12)
	f.TCP.RST = g.one(20)
	f.TCP.Options = make([]byte, 4*choose(g, 0, 0, 0, 3, 10))
	if g.one(2) {
		f.SCTP.Chunk = choose[uint8](g, sctpInit, sctpData, sctpData, sctpInitAck, sctpCookieEcho, sctpAbort, sctpShutdown, sctpShutdownAck, sctpShutdownComplete, uint8(g.rand.Uint32()))
	}
	if f.SCTP.Chunk != sctpInit || g.one(30) {
		f.SCTP.Tag = g.rand.Uint32()
	}
	f.NoChecksum = g.one(8)
	f.TrafficClass = choose[uint8](g, 0, 2, 3, 0xb9)
	f.Payload = make([]byte, choose(g, 0, 1, 18, 64, g.rand.IntN(200)))
	if g.one(50) {
		f.Payload = make([]byte, g.rand.IntN(3000))
	}
	for i := range f.Payload {
		f.Payload[i] = byte(g.rand.Uint32())
	}
	if g.one(20) {
		f.TTL = uint8(g.rand.UintN(3))
	}
	if g.one(20) {
		f.VLANs = choose(g, []uint16{0}, []uint16{10}, []uint16{20, 10}, []uint16{30, 20, 10})
	}
	if g.one(20) {
		f.DestinationMAC = choose(g, strangerMAC(), net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, net.HardwareAddr{1, 0, 0x5e, 0, 0, 1})
	}
	if g.one(20) {
		f.Options = slices.Repeat([]byte{1}, 4*g.rand.IntN(11))
		f.Extensions = g.extensions()
	}
	if g.one(20) {
		f.Padding = g.rand.IntN(30)
	}
}

func (g *Generator) extensions() []Extension {
	var chain []Extension
	for range g.rand.IntN(7) {
		kind := choose(g, layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Destination, layers.IPProtocolIPv6Routing)
		if g.one(12) {
			kind = layers.IPProtocolIPv6Fragment
		}
		body := make([]byte, 6+8*g.rand.IntN(3))
		if g.one(8) {
			body[1] = byte(g.rand.Uint32())
		}
		chain = append(chain, Extension{kind, body})
	}
	return chain
}

// bend changes some bytes that shall be noticed or not.
func (g *Generator) bend(packet []byte) []byte {
	switch g.rand.IntN(16) {
	case 0: // any bytes
		for range 1 + g.rand.IntN(4) {
			packet[g.rand.IntN(len(packet))] ^= 1 << g.rand.IntN(8)
		}
	case 1: // any of the headers' bytes, whole
		for range 1 + g.rand.IntN(2) {
			packet[12+g.rand.IntN(min(len(packet)-12, 60))] = byte(g.rand.Uint32())
		}
	case 2:
		packet = packet[:shortestPacket+g.rand.IntN(len(packet)-shortestPacket+1)]
	case 3: // lengths and fragments, where they are in the plainest packet
		offset := choose(g, 14, 16, 18, 20, 38, 46, 58)
		if offset+2 <= len(packet) && g.one(2) {
			binary.BigEndian.PutUint16(packet[offset:], uint16(g.rand.IntN(len(packet)+4)))
		}
	}
	if g.one(200) {
		for i := 14; i < len(packet); i++ {
			packet[i] = byte(g.rand.Uint32())
		}
	}
	return packet
}

// String describes the arrival for a failure's message.
func (a Arrival) String() string {
	return fmt.Sprintf("%s on %s, %d bytes", a.Program, a.Device.Name, len(a.Packet))
}
