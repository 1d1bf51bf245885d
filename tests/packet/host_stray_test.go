package packet

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// arrivedBy returns the error as our program makes it come by another device.
func (f ErrorFrame) arrivedBy(tr *trial, device string) ErrorFrame {
	moved := tr.arrivedBy(Frame{}, device)
	f.SourceMAC, f.DestinationMAC = moved.SourceMAC, moved.DestinationMAC
	return f
}

// An error about what this host has sent to a VIP is one about that to the stack, from the VIP; it comes by the device
// that the VIP's answers come by (rule X04).
func TestX04ErrorToHost(t *testing.T) {
	for name, message := range errorMessages() {
		t.Run(name, func(t *testing.T) {
			forEach(t, hostCases(), func(tr *trial) {
				out, translated := tr.hostOpens(tr.remote(tr.RemoteSecond), tr.NodeEth1)
				for _, sender := range tr.senders(translated.To.Addr()) {
					frame := tr.errorAbout(translated, sender, message, secondGatewayMAC(), tr.Device("eth1").MAC)
					moved := frame.arrivedBy(tr, "eth0")
					tr.expectError(NodeIngress, "eth1", frame, Redirect, moved)
					tr.expectError(NodeIngress, "eth0", moved, Pass, moved.becomes(out.To.Addr(), out))
				}
				tr.expectCounters(maps.PacketCounters{FlowNew: 1, IcmpTranslated: 2})
			})
		})
	}
}

// A pod of this node says so too.
func TestX04ErrorOfPodToHost(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		_, translated := tr.hostOpens(tr.local(tr.Pod), tr.PodGateway)
		frame := tr.errorAbout(translated, translated.To.Addr(), PortUnreachable, podMAC(), tr.Device("pod0").MAC)
		tr.expectError(PodIngress, "pod0", frame, Redirect, frame.arrivedBy(tr, "eth0"))
	})
}

// An error of this host's stack about what a server here was asked goes the way of the server's answers; about an answer
// of a VIP, there is nobody that it could reach.
func TestX04ErrorOfHost(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.NodeEth1)))
		out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort))
		seen := tr.tupleOf(tr.run("eth0", out.Bytes()))
		question := out.translated(seen.from, seen.to)
		frame := tr.errorAbout(question, question.To.Addr(), PortUnreachable, tr.Device("eth0").MAC, gatewayMAC())
		moved := frame.arrivedBy(tr, "eth0")
		tr.expectError(NodeEgress, "eth0", frame, Redirect, moved)
		tr.expectError(NodeIngress, "eth0", moved, Pass, moved.becomes(out.To.Addr(), out))

		answer := out.translated(out.To, out.From)
		frame = tr.errorAbout(answer, out.From.Addr(), PortUnreachable, tr.Device("eth0").MAC, gatewayMAC())
		if result := tr.run("eth0", frame.Bytes()); result.Verdict != Drop {
			tr.Errorf("the verdict is %s", result.Verdict)
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, IcmpTranslated: 1, DropHostUntranslated: 1})
	})
}

// An unknown port of a ClusterIP refuses this host too (rule C05), whatever the packet is of a connection.
func TestC05HostIsRefused(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.reserving()
		out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, unknownPort))
		if tr.protocol == compile.UDP {
			tr.expectHostError(out, 0x0303, 0x0104, 0)
			return
		}
		tr.compareUnpadded(tr.run("eth0", out.Bytes()), Redirect, resetOf(out, 0, 1001+uint32(len(out.Payload)), true))
		out = out.later()
		tr.compareUnpadded(tr.run("eth0", out.Bytes()), Redirect, resetOf(out, 5001, 0, false))
		out.TCP, out.SCTP = TCPFields{RST: true, Sequence: 1001}, SCTPFields{Chunk: sctpAbort, Tag: serverTag}
		tr.expectDrop("eth0", out)
		counted := tr.resets(2)
		counted.DropHostUntranslated = 1
		tr.expectCounters(counted)
	})
}

// What this host sends to an address that only Services can have, and is not to be translated, never leaves: neither
// pings nor fragments nor other protocols. Other VIPs are left alone, and what the node forwards (rules C05, L09).
func TestHostStrays(t *testing.T) {
	packets := map[string]func(tr *trial, to netip.Addr) []byte{
		"a ping": func(tr *trial, to netip.Addr) []byte {
			return ErrorFrame{
				SourceMAC: tr.Device("eth0").MAC, DestinationMAC: gatewayMAC(), From: tr.NodeEth0.Of(tr.family), To: to,
				Message: EchoRequest, TTL: 64, Quote: []byte("what a ping has behind its header"),
			}.Bytes()
		},
		"a fragment": func(tr *trial, to netip.Addr) []byte {
			out := tr.hostFrame(clientPort, netip.AddrPortFrom(to, servicePort))
			if out.ipv6() {
				out.Extensions = []Extension{{Kind: layers.IPProtocolIPv6Fragment, Body: []byte{0, 1, 0, 0, 0, 9}}}
				return out.Bytes()
			}
			packet := out.Bytes()
			packet[20] = 0x20 // more fragments
			setHeaderChecksum(packet[14:34])
			return packet
		},
		"another protocol": func(tr *trial, to netip.Addr) []byte {
			packet := tr.hostFrame(clientPort, netip.AddrPortFrom(to, servicePort)).Bytes()
			if tr.family == compile.IPv6 {
				packet[20] = uint8(layers.IPProtocolGRE)
				return packet
			}
			packet[23] = uint8(layers.IPProtocolGRE)
			setHeaderChecksum(packet[14:34])
			return packet
		},
	}
	for name, packet := range packets {
		t.Run(name, func(t *testing.T) {
			c := hostCases()
			c.protocols = []compile.Protocol{compile.UDP}
			forEach(t, c, func(tr *trial) {
				tr.reserving()
				tr.serveNothing() // else a ping would be answered
				for _, vip := range []Pair{tr.ClusterIP, tr.NobodysIP} {
					to := vip.Of(tr.family)
					if result := tr.run("eth0", packet(tr, to)); result.Verdict != Drop {
						tr.Errorf("to %v: the verdict is %s", to, result.Verdict)
					}
				}
				tr.expectCounters(maps.PacketCounters{DropHostUntranslated: 2})
				for _, vip := range []Pair{tr.LoadBalancer, tr.LeftIP} {
					tr.expectUntouched("eth0", packet(tr, vip.Of(tr.family)))
				}
				result, err := tr.RunForwarded(NodeEgress, tr.Device("pod0"), tr.Device("eth0"), packet(tr, tr.ClusterIP.Of(tr.family)))
				tr.must(err)
				if result.Verdict != Pass {
					tr.Errorf("forwarded, the verdict is %s", result.Verdict)
				}
				// That one the model has not seen.
				tr.model.counters, err = tr.Counters()
				tr.must(err)
			})
		})
	}
}

// A ping of a VIP with a backend is answered (rule C09), one that the node forwards is none of its own.
func TestC09PingOfHost(t *testing.T) {
	c := hostCases()
	c.protocols = []compile.Protocol{compile.UDP}
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		_, request := tr.ping(tr.ClusterIP)
		tr.expectError(NodeEgress, "eth0", request, Redirect, request.answered())
		tr.expectCounters(maps.PacketCounters{IcmpEcho: 1})
		result, err := tr.RunForwarded(NodeEgress, tr.Device("pod0"), tr.Device("eth0"), request.Bytes())
		tr.must(err)
		tr.compare(result, Pass, request.Bytes())
	})
}

// An address of Services that nobody has is nowhere for this host (rule C05).
func TestC05HostToUnallocated(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.reserving()
		tr.expectDrop("eth0", tr.hostFrame(clientPort, tr.at(tr.NobodysIP, servicePort)))
		tr.expectCounters(maps.PacketCounters{DropUnallocated: 1})
	})
}
