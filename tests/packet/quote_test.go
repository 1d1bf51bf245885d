package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// errorMessages are what is sent on.
func errorMessages() map[string]Message {
	return map[string]Message{
		"too big": TooBig, "port unreachable": PortUnreachable, "time exceeded": TimeExceeded, "bad parameter": BadParameter,
	}
}

// ingressCases: XDP leaves ICMP to tc.
func ingressCases() cases { return cases{programs: []Program{NodeIngress}} }

// router is a host on the way whom no flow knows.
func (tr *trial) router() netip.Addr { return tr.Gateway.Of(tr.family) }

// errorAbout returns an ICMP error about a packet, sent to where that came from.
func (tr *trial) errorAbout(about Frame, from netip.Addr, message Message, source, destination net.HardwareAddr) ErrorFrame {
	return ErrorFrame{
		SourceMAC: source, DestinationMAC: destination, From: from, To: about.From.Addr(),
		Message: message, Rest: 1400, TTL: 60, Quote: quoteOf(about, 64),
	}
}

// becomes returns an error as it shall be: about another packet, from and to another host.
func (f ErrorFrame) becomes(from netip.Addr, about Frame) ErrorFrame {
	f.From, f.To = from, about.From.Addr()
	quoted := f.Quote
	f.Quote = quoteOf(about, len(f.Quote))
	if at := headersOf(about) + 8; about.Protocol == compile.SCTP && at < len(quoted) {
		copy(f.Quote[at:min(at+4, len(quoted))], quoted[at:]) // of SCTP only the ports become others
	}
	return f
}

// headersOf returns how much stands before the transport header in the IP packet.
func headersOf(frame Frame) int {
	if frame.ipv6() {
		return 40 + len(frame.extensionBytes())
	}
	return 20 + len(frame.Options)
}

func (f ErrorFrame) hopped() ErrorFrame {
	f.TTL--
	return f
}

// expectError runs a program on an ICMP error, and compares verdict and packet.
func (tr *trial) expectError(program Program, device string, in ErrorFrame, verdict Verdict, want ErrorFrame) {
	tr.Helper()
	tr.compare(tr.runProgram(program, device, in.Bytes()), verdict, want.Bytes())
}

// headerLength returns how long a plain IP header is.
func headerLength(family compile.Family) int {
	return map[compile.Family]int{compile.IPv4: 20, compile.IPv6: 40}[family]
}

// senders are who says something about a packet to a backend: the backend, a router.
func (tr *trial) senders(backend netip.Addr) []netip.Addr { return []netip.Addr{backend, tr.router()} }

// An error about a client's packet to a remote backend goes on to the client: from the VIP, about what the client
// had sent (rule X04).
func TestX04ErrorFromRemoteBackend(t *testing.T) {
	for name, message := range errorMessages() {
		t.Run(name, func(t *testing.T) {
			forEach(t, ingressCases(), func(tr *trial) {
				in, translated := tr.toRemote()
				check := func() {
					for _, sender := range tr.senders(translated.To.Addr()) {
						frame := tr.errorAbout(translated, sender, message, gatewayMAC(), tr.Device("eth0").MAC)
						tr.expectError(NodeIngress, "eth0", frame, Redirect, frame.becomes(in.To.Addr(), in).hopped())
					}
				}
				check()
				tr.establish(in, translated)
				check()
				tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowEstablished: 1, IcmpTranslated: 4})
			})
		})
	}
}

// An error about an answer goes on to the remote backend, from where the client's packets come from there (rule X04).
func TestX04ErrorToRemoteBackend(t *testing.T) {
	forEach(t, ingressCases(), func(tr *trial) {
		in, translated := tr.toRemote()
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		asSent := answer.translated(in.To, in.From)
		for _, sender := range tr.senders(in.From.Addr()) {
			frame := tr.errorAbout(asSent, sender, TooBig, gatewayMAC(), tr.Device("eth0").MAC)
			tr.expectError(NodeIngress, "eth0", frame, Redirect, frame.becomes(translated.From.Addr(), answer).hopped())
		}
	})
}

// An error that no router sends on, for who says he has sent it, is left to the stack.
func TestX04ErrorFromNoRouter(t *testing.T) {
	cases := ingressCases()
	cases.families = []compile.Family{compile.IPv6}
	forEach(t, cases, func(tr *trial) {
		in, translated := tr.toRemote()
		asSent := translated.answer(gatewayMAC(), tr.Device("eth0").MAC).translated(in.To, in.From)
		for _, sender := range []string{"ff01::1", "ff02::1", "fe80::1", "::1"} {
			frame := tr.errorAbout(asSent, netip.MustParseAddr(sender), TooBig, gatewayMAC(), tr.Device("eth0").MAC)
			tr.compare(tr.run("eth0", frame.Bytes()), Pass, frame.Bytes())
		}
	})
}

// An error of a local backend, or of the node, about a client's packet is turned back where it leaves (rule X04).
func TestX04ErrorFromLocalBackend(t *testing.T) {
	forEach(t, ingressCases(), func(tr *trial) {
		in, translated := tr.toLocal()
		for _, sender := range []netip.Addr{translated.To.Addr(), tr.NodeEth0.Of(tr.family)} {
			frame := tr.errorAbout(translated, sender, PortUnreachable, tr.Device("eth0").MAC, gatewayMAC())
			want := frame.becomes(in.To.Addr(), in)
			tr.expectError(NodeEgress, "eth0", frame, Pass, want)
			tr.expectError(NodeEgress, "eth1", frame, Redirect, want) // by the device the client came by
		}
	})
}

// An error about an answer of a local backend goes to that, from whoever says so (rule X04).
func TestX04ErrorToLocalBackend(t *testing.T) {
	forEach(t, ingressCases(), func(tr *trial) {
		in, translated := tr.toLocal()
		answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		asSent := answer.translated(in.To, in.From)
		for _, sender := range tr.senders(in.From.Addr()) {
			frame := tr.errorAbout(asSent, sender, TooBig, gatewayMAC(), tr.Device("eth0").MAC)
			tr.expectError(NodeIngress, "eth0", frame, Pass, frame.becomes(sender, answer))
		}
	})
}

// What a pod is told about its packets is about what it had sent; what it says of answers, about what the backend had
// sent (rule X04).
func TestX04ErrorAtPodEdge(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		translated := in.translated(in.From, tr.at(tr.Remote, targetPort))
		tr.expect("pod0", in, Pass, translated)
		for _, sender := range tr.senders(translated.To.Addr()) {
			frame := tr.errorAbout(translated, sender, TooBig, tr.Device("pod0").MAC, podMAC())
			tr.expectError(PodEgress, "pod0", frame, Pass, frame.becomes(in.To.Addr(), in))
			tr.expectError(PodEgress, "pod1", frame, Pass, frame) // another pod's affair
		}
		answer := translated.answer(tr.Device("pod0").MAC, podMAC())
		frame := tr.errorAbout(answer.translated(in.To, in.From), in.From.Addr(), PortUnreachable, podMAC(), tr.Device("pod0").MAC)
		tr.expectError(PodIngress, "pod0", frame, Pass, frame.becomes(in.From.Addr(), answer))
	})
}

// A pod that reaches itself gets its own errors back (rules C04, X04).
func TestX04ErrorOfHairpin(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		port := tr.tupleOf(tr.run("pod0", in.Bytes())).from.Port()
		translated := in.translated(tr.at(tr.PodGateway, port), tr.at(tr.Pod, targetPort))
		frame := tr.errorAbout(translated, tr.Pod.Of(tr.family), PortUnreachable, podMAC(), tr.Device("pod0").MAC)
		want := frame.becomes(in.To.Addr(), in).hopped()
		want.SourceMAC, want.DestinationMAC = frame.DestinationMAC, frame.SourceMAC
		tr.expectError(PodIngress, "pod0", frame, Redirect, want)
	})
}

// Redirects about packets of flows end here.
func TestRedirectIsDropped(t *testing.T) {
	forEach(t, ingressCases(), func(tr *trial) {
		_, translated := tr.toRemote()
		frame := tr.errorAbout(translated, tr.router(), Redirected, gatewayMAC(), tr.Device("eth0").MAC)
		if result := tr.run("eth0", frame.Bytes()); result.Verdict != Drop {
			t.Errorf("at the node edge the verdict is %s", result.Verdict)
		}
		in := tr.podFrame("pod0", tr.at(tr.OtherPod, clientPort), tr.at(tr.ClusterIP, servicePort))
		tr.runProgram(PodIngress, "pod0", in.Bytes())
		frame = tr.errorAbout(in.translated(in.From, tr.at(tr.Remote, targetPort)), tr.router(), Redirected, tr.Device("pod0").MAC, podMAC())
		if result := tr.runProgram(PodEgress, "pod0", frame.Bytes()); result.Verdict != Drop {
			t.Errorf("at the pod edge the verdict is %s", result.Verdict)
		}
		other := tr.frame("eth0", tr.at(tr.NodeEth0, 22), tr.at(tr.Remote, 443))
		frame = tr.errorAbout(other, tr.router(), Redirected, gatewayMAC(), tr.Device("eth0").MAC)
		tr.expectError(NodeIngress, "eth0", frame, Pass, frame)
		tr.expectCounters(maps.PacketCounters{FlowNew: 2, DropIcmpRedirect: 2})
	})
}

// Routers quote as much as they like of a packet, from 8 bytes of its transport header on; what is not there cannot be
// made right, and what is less tells nothing.
func TestX04QuotesAreCut(t *testing.T) {
	forEach(t, ingressCases(), func(tr *trial) {
		in, translated := tr.toRemote()
		headers := headerLength(tr.family)
		for length := range tr.ipLength(translated) + 1 {
			frame := tr.errorAbout(translated, tr.router(), TooBig, gatewayMAC(), tr.Device("eth0").MAC)
			frame.Quote = quoteOf(translated, length)
			if length < headers+8 {
				tr.expectError(NodeIngress, "eth0", frame, Pass, frame)
				continue
			}
			want := frame.becomes(in.To.Addr(), in).hopped()
			if tr.protocol == compile.TCP && length < headers+20 && length >= headers+16 {
				copy(want.Quote[headers+16:], frame.Quote[headers+16:]) // a checksum, or half of it, in half a header
			}
			tr.expectError(NodeIngress, "eth0", frame, Redirect, want)
		}
	})
}

// Quoted packets have options, extension headers, no checksum, and may be first fragments, as any packet.
func TestX04WhatQuotesHave(t *testing.T) {
	destination := Extension{layers.IPProtocolIPv6Destination, []byte{1, 4, 0, 0, 0, 0}}
	first := Extension{layers.IPProtocolIPv6Fragment, []byte{0, 1, 0, 0, 0, 7}}
	later := Extension{layers.IPProtocolIPv6Fragment, []byte{0, 9, 0, 0, 0, 7}}
	variants := map[string]struct {
		family compile.Family
		ours   bool
		vary   func(f *Frame)
		bend   func(quote []byte)
	}{
		"IPv4 options":     {compile.IPv4, true, func(f *Frame) { f.Options = []byte{1, 1, 1, 1, 1, 1, 1, 1} }, nil},
		"no checksum":      {compile.IPv4, true, func(f *Frame) { f.NoChecksum = true }, nil},
		"first fragment":   {compile.IPv4, true, nil, func(quote []byte) { fragmentQuote(quote, 0x2000) }},
		"later fragment":   {compile.IPv4, false, nil, func(quote []byte) { fragmentQuote(quote, 0x0010) }},
		"extensions":       {compile.IPv6, true, func(f *Frame) { f.Extensions = []Extension{destination, destination} }, nil},
		"first fragment 6": {compile.IPv6, true, func(f *Frame) { f.Extensions = []Extension{destination, first} }, nil},
		"later fragment 6": {compile.IPv6, false, func(f *Frame) { f.Extensions = []Extension{later} }, nil},
	}
	for name, variant := range variants {
		t.Run(name, func(t *testing.T) {
			c := ingressCases()
			c.families, c.protocols = []compile.Family{variant.family}, withSockets()
			forEach(t, c, func(tr *trial) {
				in, translated := tr.toRemote()
				if variant.vary != nil {
					variant.vary(&in)
					variant.vary(&translated)
				}
				frame := tr.errorAbout(translated, tr.router(), TooBig, gatewayMAC(), tr.Device("eth0").MAC)
				want := frame.becomes(in.To.Addr(), in).hopped()
				if variant.bend != nil {
					variant.bend(frame.Quote)
					variant.bend(want.Quote)
				}
				if variant.ours {
					tr.expectError(NodeIngress, "eth0", frame, Redirect, want)
				} else {
					tr.expectError(NodeIngress, "eth0", frame, Pass, frame)
				}
			})
		})
	}
}

// fragmentQuote writes flags and offset into a quoted IPv4 header.
func fragmentQuote(quote []byte, field uint16) {
	binary.BigEndian.PutUint16(quote[6:], field)
	setHeaderChecksum(quote[:20])
}

// What is about no packet of a flow, or is no error, passes untouched.
func TestX04NotOurErrors(t *testing.T) {
	variants := map[string]func(tr *trial, f *ErrorFrame, translated Frame){
		"an echo request":    func(_ *trial, f *ErrorFrame, _ Frame) { f.Message = EchoRequest },
		"to somebody else":   func(tr *trial, f *ErrorFrame, _ Frame) { f.To = tr.NodeEth1.Of(tr.family) },
		"for another MAC":    func(_ *trial, f *ErrorFrame, _ Frame) { f.DestinationMAC = strangerMAC() },
		"of another port":    func(tr *trial, f *ErrorFrame, _ Frame) { f.Quote[headerLength(tr.family)] ^= 0xff },
		"the other way":      func(_ *trial, f *ErrorFrame, tr Frame) { f.Quote = quoteOf(tr.translated(tr.To, tr.From), 64) },
		"of another version": func(_ *trial, f *ErrorFrame, _ Frame) { f.Quote[0] = 0x55 },
		"without a quote":    func(_ *trial, f *ErrorFrame, _ Frame) { f.Quote = nil },
		"about itself":       func(_ *trial, f *ErrorFrame, _ Frame) { f.Quote = slices.Clone(f.Bytes()[14:][:40]) },
	}
	for name, vary := range variants {
		t.Run(name, func(t *testing.T) {
			forEach(t, ingressCases(), func(tr *trial) {
				_, translated := tr.toRemote()
				frame := tr.errorAbout(translated, tr.router(), TooBig, gatewayMAC(), tr.Device("eth0").MAC)
				vary(tr, &frame, translated)
				tr.expectUntouched("eth0", frame.Bytes())
				tr.expectCounters(maps.PacketCounters{FlowNew: 1})
			})
		})
	}
}

// XDP leaves ICMP to tc.
func TestX04XDPPassesErrorsUp(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeXDP}}, func(tr *trial) {
		_, translated := tr.toRemote()
		tr.expectUntouched("eth0", tr.errorAbout(translated, tr.router(), TooBig, gatewayMAC(), tr.Device("eth0").MAC).Bytes())
	})
}

// An error that cannot be sent on ends here, without another error about it.
func TestX04Undeliverable(t *testing.T) {
	forEach(t, ingressCases(), func(tr *trial) {
		_, translated := tr.toRemote()
		frame := tr.errorAbout(translated, tr.router(), TooBig, gatewayMAC(), tr.Device("eth0").MAC)
		frame.TTL = 1
		if result := tr.run("eth0", frame.Bytes()); result.Verdict != Drop {
			t.Errorf("the verdict is %s", result.Verdict)
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, DropIcmpUndeliverable: 1})
	})
}

// The node's own connections are told what is said about them.
func TestX04ErrorOfForeignFlow(t *testing.T) {
	forEach(t, ingressCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		out, _ := tr.outbound(nodePort)
		tr.runProgram(NodeEgress, "eth0", out.Bytes())
		tr.expectUntouched("eth0", tr.errorAbout(out, tr.router(), TooBig, gatewayMAC(), tr.Device("eth0").MAC).Bytes())
	})
}

// The sum that a device has made of the whole packet stays right.
func TestX04SummedByDevice(t *testing.T) {
	forEach(t, ingressCases(), func(tr *trial) {
		in, translated := tr.toLocal()
		asSent := translated.answer(tr.Device("eth0").MAC, gatewayMAC()).translated(in.To, in.From)
		frame := tr.errorAbout(asSent, tr.router(), TooBig, gatewayMAC(), tr.Device("eth0").MAC).Bytes()
		// The kernel sums the packet anew behind the program, and refuses if the two differ.
		result, err := tr.RunSummed(NodeIngress, tr.Device("eth0"), frame)
		if err != nil {
			tr.Fatal(err)
		}
		if err := tr.model.Check(NodeIngress, tr.Device("eth0"), frame, result); err != nil {
			tr.Error(err)
		}
	})
}
