package packet

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// allPrograms are the ones that packets meet.
func allPrograms() []Program {
	return []Program{NodeXDP, NodeIngress, NodeEgress, PodIngress, PodEgress}
}

// Packets in a VLAN are translated behind their tags, and go up: its own device forwards them.
func TestVLANTags(t *testing.T) {
	tags := map[string][]uint16{"one": {10}, "two": {20, 10}, "priority only": {0}}
	for name, ids := range tags {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.Pod)))
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
				in.VLANs = ids
				tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
			})
		})
	}
}

// A VLAN's packet to a remote backend goes up unchanged.
func TestVLANToRemoteBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.VLANs = []uint16{10}
		tr.expectUntouched("eth0", in.Bytes())
		tr.wantTables(0, 0)
	})
}

// Of a service tag and a customer tag both are walked; of three tags not all, and the packet is left alone.
func TestVLANStacks(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.VLANs = []uint16{20, 10}
		provider := in.Bytes()
		binary.BigEndian.PutUint16(provider[12:], 0x88a8)
		want := in.translated(in.From, tr.at(tr.Pod, targetPort)).Bytes()
		binary.BigEndian.PutUint16(want[12:], 0x88a8)
		tr.compare(tr.run("eth0", provider), Pass, want)

		in.VLANs = []uint16{30, 20, 10}
		tr.expectUntouched("eth0", in.Bytes())
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
	})
}

// IPv4 options stay where they are, on every way a packet goes.
func TestIPv4Options(t *testing.T) {
	for _, size := range []int{4, 40} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			forEach(t, cases{families: []compile.Family{compile.IPv4}}, func(tr *trial) {
				tr.serve(tr.service("web", tr.remote(tr.Remote)))
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
				in.Options = slices.Repeat([]byte{1}, size)
				result := tr.run("eth0", in.Bytes())
				translated := in.translated(tr.tupleOf(result).from, tr.at(tr.Remote, targetPort))
				tr.compare(result, tr.sentVerdict(true), tr.sent(translated, "eth0", gatewayMAC()).Bytes())
				answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
				want := tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC())
				tr.expect("eth0", answer, tr.sentVerdict(true), want)
			})
		})
	}
}

func hopByHop() Extension {
	return Extension{layers.IPProtocolIPv6HopByHop, []byte{1, 4, 0, 0, 0, 0}}
}

func destinationOptions() Extension {
	return Extension{layers.IPProtocolIPv6Destination, append([]byte{1, 12}, make([]byte, 12)...)}
}

func routingHeader(segmentsLeft byte) Extension {
	return Extension{layers.IPProtocolIPv6Routing, append([]byte{0, segmentsLeft}, make([]byte, 20)...)}
}

// IPv6 extension headers stay where they are (rule X08).
func TestX08ExtensionHeaders(t *testing.T) {
	chains := map[string][]Extension{
		"hop by hop":            {hopByHop()},
		"destination":           {destinationOptions()},
		"routing, at its end":   {routingHeader(0)},
		"as many as are walked": {hopByHop(), destinationOptions(), routingHeader(0), destinationOptions()},
	}
	for name, chain := range chains {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{families: []compile.Family{compile.IPv6}}, func(tr *trial) {
				tr.serve(tr.service("web", tr.remote(tr.Remote)))
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
				in.Extensions = chain
				result := tr.run("eth0", in.Bytes())
				translated := in.translated(tr.tupleOf(result).from, tr.at(tr.Remote, targetPort))
				tr.compare(result, tr.sentVerdict(true), tr.sent(translated, "eth0", gatewayMAC()).Bytes())
			})
		})
	}
}

// left runs a packet to a frontend through every program, which all shall leave it as it is, and count it once
// each as `counted` says.
func left(t *testing.T, c cases, change func(tr *trial, in Frame) []byte, counted func(*maps.PacketCounters) *uint64) {
	t.Helper()
	c.programs = allPrograms()
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device := "eth0"
		if tr.program == PodIngress || tr.program == PodEgress {
			device = "pod0"
		}
		in := tr.frame(device, tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expectUntouched(device, change(tr, in))
		var want maps.PacketCounters
		if counted != nil {
			*counted(&want) = 1
		}
		tr.expectCounters(want)
		tr.wantTables(0, 0)
	})
}

func passMalformed(c *maps.PacketCounters) *uint64 { return &c.PassMalformed }
func passExtension(c *maps.PacketCounters) *uint64 { return &c.PassExtension }

// Header chains longer than we walk, and packets on their way to another node first, are left alone.
func TestX08ChainsLeftAlone(t *testing.T) {
	chains := map[string][]Extension{
		"longer than we walk":     {hopByHop(), hopByHop(), hopByHop(), hopByHop(), hopByHop()},
		"routing, with a way yet": {routingHeader(1)},
	}
	for name, chain := range chains {
		t.Run(name, func(t *testing.T) {
			left(t, cases{families: []compile.Family{compile.IPv6}}, func(_ *trial, in Frame) []byte {
				in.Extensions = chain
				return in.Bytes()
			}, passExtension)
		})
	}
}

// Other protocols are left alone, and nobody counts them.
func TestOtherProtocols(t *testing.T) {
	for name, protocol := range map[string]byte{
		"ICMP": 1, "IGMP": 2, "IP in IP": 4, "GRE": 47, "ESP": 50, "AH": 51, "ICMPv6": 58, "none": 59, "SCTP": 132,
	} {
		t.Run(name, func(t *testing.T) {
			left(t, cases{protocols: []compile.Protocol{compile.UDP}}, func(tr *trial, in Frame) []byte {
				packet := in.Bytes()
				if tr.family == compile.IPv4 {
					packet[23] = protocol
					setHeaderChecksum(packet[14:34])
				} else {
					packet[20] = protocol
				}
				return packet
			}, nil)
		})
	}
}

// Frames that do not carry IP are left alone.
func TestOtherEthernetTypes(t *testing.T) {
	for name, kind := range map[string]uint16{"ARP": 0x0806, "LLDP": 0x88cc, "802.3 length": 64, "MPLS": 0x8847} {
		t.Run(name, func(t *testing.T) {
			left(t, cases{families: []compile.Family{compile.IPv4}}, func(_ *trial, in Frame) []byte {
				packet := in.Bytes()
				binary.BigEndian.PutUint16(packet[12:], kind)
				return packet
			}, nil)
		})
	}
}

// An IPv6 packet with an IPv4-mapped address is not taken for an IPv4 one (RFC 4942, 2.2).
func TestMappedAddressesOnTheWire(t *testing.T) {
	c := cases{families: []compile.Family{compile.IPv4}, programs: []Program{NodeXDP, NodeIngress, PodIngress}}
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device, from := tr.askedBy()
		in := tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort))
		in.From, in.To = mapped(in.From), mapped(in.To)
		tr.expectUntouched(device, in.Bytes())
		tr.expectCounters(maps.PacketCounters{PassMalformed: 1})
	})
}

// Frames for another MAC are left alone: a switch floods, a bridge's ports see others' packets.
func TestFramesForOthers(t *testing.T) {
	others := map[string]net.HardwareAddr{
		"stranger":  strangerMAC(),
		"broadcast": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"multicast": {0x01, 0, 0x5e, 0, 0, 1},
	}
	for name, destination := range others {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{programs: []Program{NodeXDP, NodeIngress, PodIngress}}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.OtherPod)))
				device, from := tr.askedBy()
				in := tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort))
				in.DestinationMAC = destination
				tr.expectUntouched(device, in.Bytes())
				tr.expectCounters(maps.PacketCounters{PassNotForUs: 1})
			})
		})
	}
}

// A port of a bridge takes frames for the bridge's MAC, and the flow remembers the bridge.
func TestFramesForTheBridge(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("br0p", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.DestinationMAC = tr.Device("br0").MAC
		translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
		tr.expect("br0p", in, Pass, translated)
		answer := translated.answer(tr.Device("br0").MAC, gatewayMAC())
		tr.expectOf(NodeEgress, "br0p", answer, Pass, answer.translated(in.To, in.From))
	})
}

// A device that nobody has told us of is not ours.
func TestUnknownDevice(t *testing.T) {
	forEach(t, cases{programs: allPrograms()}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.must(tr.Maps.Devices.Delete(uint32(tr.Device("eth0").Index)))
		tr.must(tr.ForgetDevices())
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		result := tr.expectUnmodelled("eth0", in, Pass)
		tr.compare(result, Pass, in.Bytes())
		tr.expectCounters(maps.PacketCounters{})
	})
}

// Bytes behind the IP packet, as Ethernet pads it, stay and do not matter.
func TestPadding(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.Padding = 17
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
	})
}
