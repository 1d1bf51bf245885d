package packet

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// errorPacket builds an ICMP error about a packet from the ground up, as it is sent back to whom it came from.
func (tr *trial) errorPacket(about Frame, from netip.Addr, type4, type6 uint16, mtu uint32, quoted int) []byte {
	tr.Helper()
	quote := about.Bytes()[14:][:quoted]
	rest := []byte{byte(mtu >> 24), byte(mtu >> 16), byte(mtu >> 8), byte(mtu)}
	ethernet := &layers.Ethernet{SrcMAC: about.DestinationMAC, DstMAC: about.SourceMAC}
	var all []gopacket.SerializableLayer
	if tr.family == compile.IPv4 {
		ethernet.EthernetType = layers.EthernetTypeIPv4
		ip := &layers.IPv4{
			Version: 4, TOS: 0xc0, TTL: 64, Protocol: layers.IPProtocolICMPv4,
			SrcIP: from.AsSlice(), DstIP: about.From.Addr().AsSlice(),
		}
		icmp := &layers.ICMPv4{TypeCode: layers.ICMPv4TypeCode(type4), Seq: uint16(mtu)}
		all = []gopacket.SerializableLayer{ethernet, ip, icmp, gopacket.Payload(quote)}
	} else {
		ethernet.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolICMPv6,
			SrcIP: from.AsSlice(), DstIP: about.From.Addr().AsSlice(),
		}
		icmp := &layers.ICMPv6{TypeCode: layers.ICMPv6TypeCode(type6)}
		if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
			tr.Fatal(err)
		}
		all = []gopacket.SerializableLayer{ethernet, ip, icmp, gopacket.Payload(rest), gopacket.Payload(quote)}
	}
	packet := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(packet, options, all...); err != nil {
		tr.Fatal(err)
	}
	return packet.Bytes()
}

// ipLength returns how long the IP packet of a frame without padding is.
func (tr *trial) ipLength(f Frame) int {
	p, why := parse(f.Bytes())
	if why != understood {
		tr.Fatal("the frame is not one that can be read")
	}
	return p.length
}

// resetOf returns the reset that answers a TCP segment, or the ABORT that answers an SCTP packet.
func resetOf(in Frame, sequence, acknowledged uint32, ack bool) Frame {
	want := in.translated(in.To, in.From)
	want.SourceMAC, want.DestinationMAC, want.TTL, want.Payload = in.DestinationMAC, in.SourceMAC, 64, nil
	want.SCTP = SCTPFields{Chunk: sctpAbort, Tag: in.SCTP.Tag, Flags: 1}
	if in.SCTP.Chunk == sctpInit {
		want.SCTP = SCTPFields{Chunk: sctpAbort, Tag: in.SCTP.InitiateTag}
	}
	want.TCP = TCPFields{RST: true, ACK: ack, Sequence: sequence, Acknowledged: acknowledged}
	return want
}

// resets counts refusals of packets of connections.
func (tr *trial) resets(number uint64) maps.PacketCounters {
	if tr.protocol == compile.SCTP {
		return maps.PacketCounters{RejectSctpAbort: number}
	}
	return maps.PacketCounters{RejectTcpReset: number}
}

// askedBy returns where the trial's program finds a client's packets.
func (tr *trial) askedBy() (device string, from netip.AddrPort) {
	if tr.program == PodIngress {
		return "pod0", tr.at(tr.Pod, clientPort)
	}
	return "eth0", tr.at(tr.Client, clientPort)
}

func (tr *trial) serveNothing() {
	tr.Helper()
	empty := tr.service("empty")
	empty.NoEndpoints = true
	tr.serve(empty)
}

// A SYN to a service without endpoints is reset, whatever else it carries (rule P06).
func TestP06ResetWithoutEndpoints(t *testing.T) {
	variants := map[string]func(in *Frame) (acknowledged uint32){
		"plain":        func(in *Frame) uint32 { in.Payload = nil; return 1001 },
		"with data":    func(in *Frame) uint32 { in.Payload = []byte("fast open"); return 1010 },
		"with options": func(in *Frame) uint32 { in.TCP.Options, in.Payload = []byte{1, 1, 1, 1}, nil; return 1001 },
		"with IP options": func(in *Frame) uint32 {
			in.Payload = nil
			if in.ipv6() {
				in.Extensions = []Extension{{Kind: layers.IPProtocolIPv6Destination, Body: []byte{1, 4, 0, 0, 0, 0}}}
			} else {
				in.Options = []byte{1, 1, 1, 1}
			}
			return 1001
		},
		"near the end": func(in *Frame) uint32 { in.TCP.Sequence, in.Payload = 0xffffffff, nil; return 0 },
	}
	c := cases{programs: []Program{NodeIngress, PodIngress}, protocols: []compile.Protocol{compile.TCP}}
	for name, vary := range variants {
		t.Run(name, func(t *testing.T) {
			forEach(t, c, func(tr *trial) {
				tr.serveNothing()
				device, from := tr.askedBy()
				in := tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort))
				acknowledged := vary(&in)
				result := tr.run(device, in.Bytes())
				tr.compareUnpadded(result, Redirect, resetOf(in, 0, acknowledged, true))
				tr.expectCounters(maps.PacketCounters{RejectTcpReset: 1})
				tr.wantTables(0, 0)
			})
		})
	}
}

// compareUnpadded compares with a frame that may be shorter than Ethernet allows: the device pads it.
func (tr *trial) compareUnpadded(result Result, verdict Verdict, want Frame) {
	tr.Helper()
	all := want.Bytes()
	p, why := parse(all)
	if why != understood {
		tr.Fatal("the frame wanted is not one that can be read")
	}
	tr.compare(result, verdict, all[:p.ip+p.length])
	if err := VerifyChecksums(result.Packet, true); err != nil {
		tr.Error(err)
	}
}

// TCP in the middle of a connection to a VIP without endpoints is reset as a closed port would; at a NodePort it is not
// ours.
func TestP06ResetMidStream(t *testing.T) {
	c := cases{programs: []Program{NodeIngress}, protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		tr.serveNothing()
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).later()
		tr.compareUnpadded(tr.run("eth0", in.Bytes()), Redirect, resetOf(in, in.TCP.Acknowledged, 0, false))
		in = tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.NodeEth0, nodePort)).later()
		tr.expectUntouched("eth0", in.Bytes())
		tr.expectCounters(maps.PacketCounters{RejectTcpReset: 1, PassWithoutFlow: 1})
	})
}

// A reset is not answered by one.
func TestP06NoResetForReset(t *testing.T) {
	c := cases{programs: []Program{NodeIngress}, protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		tr.serveNothing()
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.TCP = TCPFields{RST: true}
		tr.expectDrop("eth0", in)
		tr.expectCounters(maps.PacketCounters{})
	})
}

// UDP to a service without endpoints is answered with port unreachable, which quotes the packet (rule P06).
func TestP06UnreachableWithoutEndpoints(t *testing.T) {
	payloads := map[string]int{"none": 0, "short": 36, "odd": 37, "almost too much": 480, "too much": 1200}
	c := cases{programs: []Program{NodeIngress, PodIngress}, protocols: []compile.Protocol{compile.UDP}}
	for name, size := range payloads {
		t.Run(name, func(t *testing.T) {
			forEach(t, c, func(tr *trial) {
				tr.serveNothing()
				device, from := tr.askedBy()
				in := tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort))
				in.Payload = make([]byte, size)
				for i := range in.Payload {
					in.Payload[i] = byte(i)
				}
				quoted := min(tr.ipLength(in), 508) &^ 3
				result := tr.run(device, in.Bytes())
				tr.compare(result, Redirect, tr.errorPacket(in, in.To.Addr(), 0x0303, 0x0104, 0, quoted))
				if err := VerifyChecksums(result.Packet, true); err != nil {
					tr.Error(err)
				}
				tr.expectCounters(maps.PacketCounters{RejectUnreachable: 1})
				tr.wantTables(0, 0)
			})
		})
	}
}

// XDP leaves the answering to tc.
func TestP06XDPPassesUp(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeXDP}}, func(tr *trial) {
		tr.serveNothing()
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expectUntouched("eth0", in.Bytes())
		tr.expectCounters(maps.PacketCounters{XdpPassedUp: 1})
	})
}

// No endpoint on this node, but elsewhere: silence, so that the load balancer's health check decides (rules
// P02, P05).
func TestP02DropWithoutLocalEndpoint(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeXDP, NodeIngress, PodIngress}}, func(tr *trial) {
		tr.serve(tr.service("web"))
		device, from := tr.askedBy()
		tr.expectDrop(device, tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort)))
		tr.expectCounters(maps.PacketCounters{DropNoLocalEndpoint: 1})
	})
}

// No more ICMP errors are sent in a second than a thousand.
func TestICMPErrorsAreLimited(t *testing.T) {
	c := cases{programs: []Program{NodeIngress}, protocols: []compile.Protocol{compile.UDP}}
	forEach(t, c, func(tr *trial) {
		release := pinToCPU(tr.T)
		defer release()
		tr.serveNothing()
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).Bytes()
		for range icmpRate {
			if result := tr.run("eth0", in); result.Verdict != Redirect {
				tr.Fatalf("the verdict is %s", result.Verdict)
			}
		}
		if result := tr.run("eth0", in); result.Verdict != Drop {
			tr.Errorf("the verdict on one more is %s", result.Verdict)
		}
		tr.expectCounters(maps.PacketCounters{RejectUnreachable: icmpRate + 1, IcmpLimited: 1})
	})
}

// A packet that has come to the end of its hops is not forwarded, opens no flow, and its sender is told.
func TestTimeExceeded(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeIngress}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.TTL = 1
		want := tr.errorPacket(in, tr.NodeEth0.Of(tr.family), 0x0b00, 0x0300, 0, tr.ipLength(in)&^3)
		tr.compare(tr.run("eth0", in.Bytes()), Redirect, want)
		tr.expectCounters(maps.PacketCounters{IcmpTimeExceeded: 1})
		tr.wantTables(0, 0)
	})
}

// So it is with a packet of an established flow, in both directions.
func TestTimeExceededOfKnownFlow(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeIngress}}, func(tr *trial) {
		in, translated := tr.toRemote()
		tr.establish(in, translated)
		for _, frame := range []Frame{in.later(), translated.answer(gatewayMAC(), tr.Device("eth0").MAC)} {
			frame.TTL = 1
			want := tr.errorPacket(frame, tr.NodeEth0.Of(tr.family), 0x0b00, 0x0300, 0, tr.ipLength(frame)&^3)
			tr.compare(tr.run("eth0", frame.Bytes()), Redirect, want)
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowEstablished: 1, IcmpTimeExceeded: 2})
	})
}

// A device without an address of the family speaks as the one that was asked.
func TestTimeExceededWithoutAddress(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeIngress}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.frame("eth2", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.TTL = 1
		want := tr.errorPacket(in, in.To.Addr(), 0x0b00, 0x0300, 0, tr.ipLength(in)&^3)
		tr.compare(tr.run("eth2", in.Bytes()), Redirect, want)
	})
}

// XDP leaves it to tc to tell the sender, and opens no flow either.
func TestTimeExceededAtXDP(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeXDP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.TTL = 1
		tr.expectUntouched("eth0", in.Bytes())
		tr.expectCounters(maps.PacketCounters{XdpPassedUp: 1})
		tr.wantTables(0, 0)
	})
}

// TTL 1 is enough for a backend on this node: the stack counts the hop.
func TestLastHopToLocalBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.TTL = 1
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
	})
}

// A hairpin's packet at the end of its hops goes to no one.
func TestTimeExceededOfHairpin(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		in.TTL = 1
		want := tr.errorPacket(in, tr.PodGateway.Of(tr.family), 0x0b00, 0x0300, 0, tr.ipLength(in)&^3)
		tr.compare(tr.run("pod0", in.Bytes()), Redirect, want)
		tr.wantTables(0, 0)
	})
}

// A packet too big for the way out is not forwarded, opens no flow, and its sender is told the MTU.
func TestTooBig(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeIngress}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.Payload = make([]byte, 1301-tr.ipLength(in)+len(in.Payload))
		want := tr.errorPacket(in, tr.NodeEth0.Of(tr.family), 0x0304, 0x0200, 1300, 508)
		tr.compare(tr.run("eth0", in.Bytes()), Redirect, want)
		tr.expectCounters(maps.PacketCounters{IcmpTooBig: 1})
		tr.wantTables(0, 0)

		in.Payload = in.Payload[1:]
		if result := tr.run("eth0", in.Bytes()); tr.tupleOf(result).to != tr.at(tr.RemoteFourth, targetPort) {
			tr.Errorf("a packet of the MTU's size became %s to %v", result.Verdict, tr.tupleOf(result))
		}
	})
}

// XDP leaves the packet that is too big to tc, and opens no flow.
func TestTooBigAtXDP(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeXDP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.Payload = make([]byte, 1301)
		tr.expectUntouched("eth0", in.Bytes())
		tr.expectCounters(maps.PacketCounters{XdpPassedUp: 1})
		tr.wantTables(0, 0)
	})
}

// Of a packet that stands for many, only the segments meet the MTU.
func TestTooBigCountsSegments(t *testing.T) {
	c := cases{programs: []Program{NodeIngress}, protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.Payload = make([]byte, 3000)
		headers := uint32(tr.ipLength(in) - len(in.Payload))
		for size, verdict := range map[uint32]string{1300 - headers: "sent", 1301 - headers: "refused"} {
			result, err := tr.RunGSO(NodeIngress, tr.Device("eth0"), in.Bytes(), size)
			if err != nil {
				tr.Fatal(err)
			}
			became := "refused"
			if p, why := parse(result.Packet); why == understood && p.tuple.to == tr.at(tr.RemoteFourth, targetPort) {
				became = "sent"
			}
			if became != verdict {
				tr.Errorf("with segments of %d bytes the packet is %s", size, became)
			}
			tr.begin()
			tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		}
	})
}
