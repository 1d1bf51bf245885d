package packet

import (
	"net"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// elsewhere returns a backend on another node that takes packets in tunnels.
func (tr *trial) elsewhere(host Pair) compile.Backend {
	backend := tr.remote(host)
	backend.Tunnel = true
	return backend
}

// tunnelled returns a frame as it leaves in a tunnel to a backend, by a device.
func (tr *trial) tunnelled(in Frame, backend Pair, device string, neighbour net.HardwareAddr) []byte {
	from := map[string]Pair{"eth0": tr.NodeEth0, "eth1": tr.NodeEth1, "eth3": narrowAddress()}[device]
	tunnel := Tunnel{From: from.Of(tr.family), To: backend.Of(tr.family), Port: targetPort, TTL: 64}
	out := tr.sent(in, device, neighbour)
	if !tr.program.XDP() { // the kernel writes the MACs, later
		out.SourceMAC, out.DestinationMAC = in.SourceMAC, in.DestinationMAC
	}
	return tunnel.In(out.Bytes(), in.TrafficClass&^3)
}

// expectTunnelled runs a packet of which the model knows nothing.
func (tr *trial) expectTunnelled(device string, in Frame, backend Pair, out string, neighbour net.HardwareAddr) {
	tr.Helper()
	result := tr.expectUnmodelled(device, in, tr.sentVerdict(device == out))
	tr.compare(result, result.Verdict, tr.tunnelled(in, backend, out, neighbour))
}

// forTunnels runs a test of flows that the model does not follow.
func forTunnels(t *testing.T, c cases, test func(tr *trial)) {
	t.Helper()
	forEach(t, c, func(tr *trial) {
		defer tr.begin()
		test(tr)
	})
}

// A packet to a backend of another Weir node goes there as the client has sent it, one hop older: the first, those of an
// established flow, and the last. The flow has one half.
func TestTunnelSends(t *testing.T) {
	forTunnels(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.TrafficClass = 0xb9 // expedited forwarding, and able to hear of congestion
		for _, packet := range []Frame{in, in.later(), in.later(), in.later()} {
			tr.expectTunnelled("eth0", packet, tr.RemoteSecond, "eth1", secondGatewayMAC())
		}
		tr.wantHalves(1, 0)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowEstablished: 1, TunnelSent: 4})
	})
}

// Also back by the device that it came by.
func TestTunnelSendsBack(t *testing.T) {
	forTunnels(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.Remote)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.NodeEth0, nodePort))
		for _, packet := range []Frame{in, in.later(), in.later()} {
			tr.expectTunnelled("eth0", packet, tr.Remote, "eth0", gatewayMAC())
		}
	})
}

// A packet that fits its way, but not with the outer header, is answered with what fits.
func TestTunnelTooBig(t *testing.T) {
	forTunnels(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expectTunnelled("eth0", in, tr.RemoteSecond, "eth1", secondGatewayMAC())
		header := map[compile.Family]int{compile.IPv4: 20, compile.IPv6: 40}[tr.family]
		fits := in.later()
		fits.Payload = make([]byte, 1500-header-(len(fits.Bytes())-14-len(fits.Payload)))
		for range 2 {
			tr.expectTunnelled("eth0", fits, tr.RemoteSecond, "eth1", secondGatewayMAC())
		}
		long := fits
		long.Payload = append(long.Payload, 0)
		if tr.program.XDP() {
			tr.compare(tr.expectUnmodelled("eth0", long, Pass), Pass, long.Bytes())
			return
		}
		result := tr.expectUnmodelled("eth0", long, Redirect)
		tr.compare(result, Redirect, tr.errorPacket(long, tr.NodeEth0.Of(tr.family), 0x0304, 0x0200, uint32(1500-header), 508))
	})
}

// So is one that does not fit its way at all, and would be the first of its flow.
func TestTunnelTooBigAtFirst(t *testing.T) {
	forTunnels(t, cases{programs: []Program{NodeIngress}, protocols: []compile.Protocol{compile.UDP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).large(1501)
		header := map[compile.Family]int{compile.IPv4: 20, compile.IPv6: 40}[tr.family]
		result := tr.expectUnmodelled("eth0", in, Redirect)
		tr.compare(result, Redirect, tr.errorPacket(in, tr.NodeEth0.Of(tr.family), 0x0304, 0x0200, uint32(1500-header), 508))
		tr.wantHalves(0, 0)
	})
}

// One that its sender lets routers cut is cut, and each piece goes in a tunnel.
func TestTunnelCuts(t *testing.T) {
	onWire(t, cutCases(compile.UDP), func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteFourth)))
		tr.attachNode("eth0", "eth3")
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).large(1400)
		in.MayBeCut = true
		routed := tr.routed(in, "eth3", neighbourMAC())
		tunnel := Tunnel{From: narrowAddress().IPv4, To: tr.RemoteFourth.IPv4, Port: targetPort, TTL: 64}
		var pieces [][]byte
		for _, piece := range routed.fragments(0x1234, 1256) {
			pieces = append(pieces, tunnel.In(piece, in.TrafficClass))
		}
		client := tr.wire("eth0", false)
		tr.expectPieces(func() { tr.send(client, in) }, "eth3", pieces)
	})
}

// What is at the end of its life is not sent on.
func TestTunnelExpired(t *testing.T) {
	forTunnels(t, cases{programs: []Program{NodeIngress}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expectTunnelled("eth0", in, tr.RemoteSecond, "eth1", secondGatewayMAC())
		expired := in.later()
		expired.TTL = 1
		tr.expectUnmodelled("eth0", expired, Redirect)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowEstablished: 1, TunnelSent: 1, IcmpTimeExceeded: 1})
	})
}

// A client that may be on the backend's own node is served by SNAT.
func TestNoTunnelForNodes(t *testing.T) {
	forTunnels(t, cases{}, func(tr *trial) {
		tr.must(tr.Exempt(prefixOf(tr.Client, tr.family)))
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort))
		want := tr.sent(in.translated(tr.at(tr.NodeEth1, 61500), tr.at(tr.RemoteSecond, targetPort)), "eth1", secondGatewayMAC())
		result := tr.expectUnmodelled("eth0", in, Redirect)
		tr.compare(result, Redirect, want.Bytes())
	})
}

// A SYN without an answer is sent again by SNAT: to another backend, or to the same, for the tunnel may be what is wrong.
// The first of both to answer has the flow.
func TestTunnelIsNotTriedAgain(t *testing.T) {
	forTunnels(t, cases{settings: quick(), protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, 61000), tr.at(tr.LoadBalancer, servicePort))
		tr.expectTunnelled("eth0", in, tr.RemoteSecond, "eth1", secondGatewayMAC())
		wait()
		translated := in.translated(tr.at(tr.NodeEth1, 61000), tr.at(tr.RemoteSecond, targetPort))
		tr.compare(tr.expectUnmodelled("eth0", in, Redirect), Redirect, tr.sent(translated, "eth1", secondGatewayMAC()).Bytes())
		answer := translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC)
		answer.TCP.SYN = true
		result := tr.expectUnmodelled("eth1", answer, Redirect)
		tr.compare(result, Redirect, tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC()).Bytes())
		result = tr.expectUnmodelled("eth0", in.later(), Redirect)
		tr.compare(result, Redirect, tr.sent(translated.later(), "eth1", secondGatewayMAC()).Bytes())
		tr.wantHalves(2, 0)
	})
}

// Where the client goes on, the tunnel's backend has answered it, whatever became of another try.
func TestTunnelIsFirst(t *testing.T) {
	forTunnels(t, cases{settings: quick(), protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, 61000), tr.at(tr.LoadBalancer, servicePort))
		tr.expectTunnelled("eth0", in, tr.RemoteSecond, "eth1", secondGatewayMAC())
		wait()
		tr.expectUnmodelled("eth0", in, Redirect)
		for range 2 {
			tr.expectTunnelled("eth0", in.later(), tr.RemoteSecond, "eth1", secondGatewayMAC())
		}
		tr.wantHalves(1, 1)
	})
}

// A packet in the middle of a connection goes where the table says, as every node's does.
func TestTunnelFromTheMiddle(t *testing.T) {
	forTunnels(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).later()
		for range 3 {
			tr.expectTunnelled("eth0", in, tr.RemoteSecond, "eth1", secondGatewayMAC())
		}
	})
}

// A SYN on a connection that has ended, or whose client has been silent for long, begins a new one.
func TestTunnelEnds(t *testing.T) {
	forTunnels(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		last := in.later()
		last.TCP.FIN = true
		for _, packet := range []Frame{in, in.later(), in, last, in} {
			tr.expectTunnelled("eth0", packet, tr.RemoteSecond, "eth1", secondGatewayMAC())
		}
		tr.wantHalves(0, 1)
		tr.expectCounters(maps.PacketCounters{FlowNew: 2, FlowEstablished: 1, TunnelSent: 5})
	})
}

// An error about an answer that the backend's node has sent comes to the VIP, and goes on there.
func TestTunnelSendsErrors(t *testing.T) {
	forTunnels(t, cases{programs: []Program{NodeIngress}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.elsewhere(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		for _, packet := range []Frame{in, in.later()} {
			tr.expectTunnelled("eth0", packet, tr.RemoteSecond, "eth1", secondGatewayMAC())
		}
		answer := in.answer(tr.Device("eth1").MAC, gatewayMAC()).large(1400)
		tooBig := tr.errorAbout(answer, tr.router(), TooBig, gatewayMAC(), tr.Device("eth0").MAC)
		tooBig.Rest = 1280
		result, err := tr.World.Run(NodeIngress, tr.Device("eth0"), tooBig.Bytes())
		tr.must(err)
		tooBig.TTL--
		tunnel := Tunnel{From: tr.NodeEth1.Of(tr.family), To: tr.RemoteSecond.Of(tr.family), Port: targetPort, TTL: 64}
		class := map[compile.Family]uint8{compile.IPv4: 0xc0}[tr.family] // as errors are sent in IPv4
		tr.compare(result, Redirect, tunnel.In(tooBig.Bytes(), class))
	})
}
