package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// otherNode is a node that sends in tunnels: it is behind eth1's gateway, and has the address as a NodePort's too.
func (tr *trial) otherNode() Pair { return pair("198.51.100.9", "2001:db8:64::9") }

// brought returns a client's packet as another node brings it, in a tunnel to a backend here.
func (tr *trial) brought(in Frame, backend Pair) []byte {
	in.SourceMAC, in.DestinationMAC = secondGatewayMAC(), tr.Device("eth1").MAC
	tunnel := Tunnel{From: tr.otherNode().Of(tr.family), To: backend.Of(tr.family), Port: targetPort, TTL: 61}
	return tunnel.In(in.Bytes(), 0)
}

// runBrought runs what another node brings, of which the model knows nothing.
func (tr *trial) runBrought(packet []byte) Result {
	tr.Helper()
	result, err := tr.World.Run(NodeIngress, tr.Device("eth1"), packet)
	tr.must(err)
	return result
}

// byClient returns a packet that has come by the device, that the client would have come by, in place of eth1: as the
// program leaves it. The stack gets it there.
func (tr *trial) byClient(f Frame) Frame {
	f.SourceMAC, f.DestinationMAC = movedFrom(), tr.Device("eth0").MAC
	return f
}

func movedFrom() []byte { return []byte{2, 'w', 'e', 'i', 'r', 0} }

// forArrivals runs a test of what other nodes bring.
func forArrivals(t *testing.T, c cases, test func(tr *trial)) {
	t.Helper()
	c.programs = []Program{NodeIngress}
	forTunnels(t, c, func(tr *trial) {
		tr.must(tr.TakeTunnels(tr.otherNode().Of(tr.family)))
		test(tr)
	})
}

// What another node brings is unpacked and reaches its backend as if the client had sent it here, by the client's own
// device; the answer leaves from the frontend, and later packets follow.
func TestTunnelArrives(t *testing.T) {
	for name, to := range map[string]func(tr *trial) (Pair, uint16){
		"load balancer":             func(tr *trial) (Pair, uint16) { return tr.LoadBalancer, servicePort },
		"the other node's NodePort": func(tr *trial) (Pair, uint16) { return tr.otherNode(), nodePort },
	} {
		t.Run(name, func(t *testing.T) {
			forArrivals(t, cases{}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.Pod), tr.local(tr.OtherPod)))
				host, port := to(tr)
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(host, port))
				for _, packet := range []Frame{in, in.later(), in.later(), in.later()} {
					want := tr.byClient(packet.translated(in.From, tr.at(tr.OtherPod, targetPort)))
					tr.compare(tr.runBrought(tr.brought(packet, tr.OtherPod)), Redirect, want.Bytes())
					answer := packet.translated(in.From, tr.at(tr.OtherPod, targetPort)).answer(tr.Device("eth0").MAC, gatewayMAC())
					result, err := tr.World.Run(NodeEgress, tr.Device("eth0"), answer.Bytes())
					tr.must(err)
					tr.compare(result, Pass, answer.translated(in.To, in.From).Bytes())
				}
				tr.wantHalves(2, 0)
				tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowEstablished: 1, TunnelReceived: 4})
			})
		})
	}
}

// A client behind the device that the tunnel comes by stays there.
func TestTunnelArrivesByTheClientsDevice(t *testing.T) {
	forArrivals(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.SecondClient, clientPort), tr.at(tr.LoadBalancer, servicePort))
		for range 2 {
			want := in.translated(in.From, tr.at(tr.Pod, targetPort))
			want.SourceMAC, want.DestinationMAC = secondGatewayMAC(), tr.Device("eth1").MAC
			tr.compare(tr.runBrought(tr.brought(in, tr.Pod)), Pass, want.Bytes())
		}
	})
}

// A client that is a pod of this node has its flow at its own edge, where the answer passes.
func TestTunnelArrivesForPod(t *testing.T) {
	forArrivals(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.OtherPod, clientPort), tr.at(tr.otherNode(), nodePort))
		for _, packet := range []Frame{in, in.later(), in.later()} {
			translated := packet.translated(in.From, tr.at(tr.Pod, targetPort))
			want := translated
			want.SourceMAC, want.DestinationMAC = movedFrom(), tr.Device("pod1").MAC
			tr.compare(tr.runBrought(tr.brought(packet, tr.Pod)), Redirect, want.Bytes())
			answer := translated.answer(tr.Device("pod1").MAC, podMAC())
			result, err := tr.World.Run(PodEgress, tr.Device("pod1"), answer.Bytes())
			tr.must(err)
			tr.compare(result, Pass, answer.translated(in.To, in.From).Bytes())
		}
		tr.wantHalves(2, 0)
	})
}

// A tunnel decides: where a flow of the same client leads elsewhere, it is replaced.
func TestTunnelReplacesFlow(t *testing.T) {
	for name, other := range map[string]func(tr *trial) compile.Backend{
		"here":             func(tr *trial) compile.Backend { return tr.local(tr.OtherPod) },
		"by SNAT":          func(tr *trial) compile.Backend { return tr.remote(tr.Remote) },
		"in a tunnel back": func(tr *trial) compile.Backend { return tr.elsewhere(tr.RemoteSecond) },
	} {
		t.Run(name, func(t *testing.T) {
			forArrivals(t, cases{}, func(tr *trial) {
				web := tr.service("web", tr.local(tr.Pod))
				was := tr.service("web", other(tr))
				was.Inside = web.Inside
				tr.serve(was)
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
				for _, packet := range []Frame{in, in.later(), in.later()} {
					_, err := tr.World.Run(NodeIngress, tr.Device("eth0"), packet.Bytes())
					tr.must(err)
				}
				for range 2 {
					want := tr.byClient(in.later().translated(in.From, tr.at(tr.Pod, targetPort)))
					tr.compare(tr.runBrought(tr.brought(in.later(), tr.Pod)), Redirect, want.Bytes())
				}
			})
		})
	}
}

// What is no tunnel of another node to a backend here is left alone: of a stranger, to another port or protocol, to no
// backend, with options, for another host; and by XDP all are.
func TestNoTunnelOfOurs(t *testing.T) {
	forArrivals(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod), tr.remote(tr.Remote)))
		in := tr.frame("eth1", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		ours := Tunnel{From: tr.otherNode().Of(tr.family), To: tr.Pod.Of(tr.family), Port: targetPort, TTL: 61}
		stranger, port, elsewhere, nobody := ours, ours, ours, ours
		stranger.From = tr.SecondClient.Of(tr.family)
		port.Port++
		elsewhere.To = tr.Remote.Of(tr.family)
		nobody.To = tr.OtherPod.Of(tr.family)
		for name, tunnel := range map[string]Tunnel{"a stranger's": stranger, "another port": port, "a backend elsewhere": elsewhere, "no backend": nobody} {
			packet := tunnel.In(in.Bytes(), 0)
			if result := tr.runBrought(packet); result.Verdict != Pass {
				tr.Errorf("%s: the verdict is %s", name, result.Verdict)
			} else {
				tr.compare(result, Pass, packet)
			}
		}
		other := in
		other.Protocol = compile.TCP + compile.UDP - tr.protocol
		packet := ours.In(other.Bytes(), 0)
		tr.compare(tr.runBrought(packet), Pass, packet)
		foreign := in
		foreign.DestinationMAC = strangerMAC()
		packet = ours.In(foreign.Bytes(), 0)
		tr.compare(tr.runBrought(packet), Pass, packet)
		packet = ours.In(in.Bytes(), 0)
		result, err := tr.World.Run(NodeXDP, tr.Device("eth1"), packet)
		tr.must(err)
		tr.compare(result, Pass, packet)
		tr.wantHalves(0, 0)
		tr.expectCounters(maps.PacketCounters{})
	})
}

// To no frontend that is known here, or of a client whom no answer would reach, it is dropped, and counted.
func TestTunnelToNobody(t *testing.T) {
	forArrivals(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		vip := tr.at(tr.LoadBalancer, servicePort)
		for _, in := range []Frame{
			tr.frame("eth1", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort+1)),
			tr.frame("eth1", tr.at(tr.NodeEth0, clientPort), vip),
			tr.frame("eth1", tr.at(tr.Blackhole, clientPort), vip),
		} {
			if result := tr.runBrought(tr.brought(in, tr.Pod)); result.Verdict != Drop {
				tr.Errorf("from %s to %s: the verdict is %s", in.From, in.To, result.Verdict)
			}
		}
		tr.expectCounters(maps.PacketCounters{DropTunnelUnknown: 3, TunnelReceived: 3})
	})
}

// A tunnel's packet that ends anywhere is unpacked whole, or not at all.
func TestTunnelTruncated(t *testing.T) {
	forArrivals(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth1", tr.at(tr.SecondClient, clientPort), tr.at(tr.LoadBalancer, servicePort))
		whole := tr.brought(in, tr.Pod)
		for length := in.headersLength(); length < len(whole); length++ { // no shorter ones: kernelRuns
			packet := whole[:length]
			result := tr.runBrought(packet)
			if result.Verdict != Pass && result.Verdict != Drop {
				tr.Fatalf("%d bytes: the verdict is %s", length, result.Verdict)
			}
			if result.Verdict == Pass {
				tr.compare(result, Pass, packet)
			}
		}
		tr.wantHalves(0, 0)
	})
}

// The fragments of a datagram come one by one, the first before the others; one without is dropped.
func TestTunnelFragments(t *testing.T) {
	forArrivals(t, cases{protocols: []compile.Protocol{compile.UDP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth1", tr.at(tr.SecondClient, clientPort), tr.at(tr.LoadBalancer, servicePort)).large(3000)
		in.SourceMAC = secondGatewayMAC()
		translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
		tunnel := Tunnel{From: tr.otherNode().Of(tr.family), To: tr.Pod.Of(tr.family), Port: targetPort, TTL: 61}
		wanted := translated.fragments(77, 1200)
		for i, fragment := range in.fragments(77, 1200) {
			tr.compare(tr.runBrought(tunnel.In(fragment, 0)), Pass, wanted[i])
		}
		late := in.fragments(78, 1200)[1]
		if result := tr.runBrought(tunnel.In(late, 0)); result.Verdict != Drop {
			tr.Errorf("a fragment before the first: the verdict is %s", result.Verdict)
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, TunnelReceived: 3, DropFragment: 1})
	})
}

// An error about an answer, which its way sends to the VIP, is brought here, and told to the backend.
func TestTunnelBringsErrors(t *testing.T) {
	forArrivals(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth1", tr.at(tr.SecondClient, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.runBrought(tr.brought(in, tr.Pod))
		answer := in.answer(tr.Device("eth1").MAC, secondGatewayMAC()).large(1300)
		about := tr.errorAbout(answer, tr.router(), TooBig, secondGatewayMAC(), tr.Device("eth1").MAC)
		about.Rest = 1280
		tunnel := Tunnel{From: tr.otherNode().Of(tr.family), To: tr.Pod.Of(tr.family), Port: targetPort, TTL: 61}
		want := about.becomes(about.From, answer.translated(tr.at(tr.Pod, targetPort), in.From))
		tr.compare(tr.runBrought(tunnel.In(about.Bytes(), 0)), Pass, want.Bytes())
	})
}

// The answer to a SYN that a tunnel has brought says how long the client's segments may be, so that they fit into it.
func TestTunnelSegmentSize(t *testing.T) {
	for name, test := range map[string]struct{ options, want func(most uint16) []byte }{
		"too long": {
			func(uint16) []byte { return []byte{2, 4, 0x05, 0xb4} },
			func(most uint16) []byte { return []byte{2, 4, byte(most >> 8), byte(most)} },
		},
		"behind others": {
			func(uint16) []byte { return []byte{4, 2, 1, 2, 4, 0x05, 0xb4, 1} },
			func(most uint16) []byte { return []byte{4, 2, 1, 2, 4, byte(most >> 8), byte(most), 1} },
		},
		"short": {
			func(uint16) []byte { return []byte{2, 4, 0x02, 0x18} }, func(uint16) []byte { return []byte{2, 4, 0x02, 0x18} },
		},
		"none": {func(uint16) []byte { return nil }, func(uint16) []byte { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			forArrivals(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
				most := map[compile.Family]uint16{compile.IPv4: 1500 - 20 - 40, compile.IPv6: 1500 - 40 - 60}[tr.family]
				tr.serve(tr.service("web", tr.local(tr.Pod)))
				in := tr.frame("eth1", tr.at(tr.SecondClient, clientPort), tr.at(tr.LoadBalancer, servicePort))
				tr.runBrought(tr.brought(in, tr.Pod))
				answer := in.translated(in.From, tr.at(tr.Pod, targetPort)).answer(tr.Device("eth1").MAC, secondGatewayMAC())
				answer.TCP.SYN, answer.TCP.Options = true, test.options(most)
				result, err := tr.World.Run(NodeEgress, tr.Device("eth1"), answer.Bytes())
				tr.must(err)
				want := answer.translated(in.To, in.From)
				want.TCP.Options = test.want(most)
				tr.compare(result, Pass, want.Bytes())
			})
		})
	}
}
