package packet

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// tunnelPackets are the random packets of each family and protocol that a tunnel brings.
const tunnelPackets = 4_000

// What another node brings becomes what it would have become had the client sent it here itself, whatever it is: byte by
// byte. What would be none of ours is not unpacked, or dropped.
func TestRandomPacketsInTunnels(t *testing.T) {
	settings := LargeSettings()
	settings.Constants.InsideBySource = false
	forArrivals(t, cases{settings: &settings}, func(tr *trial) {
		web := tr.service("web", tr.local(tr.Pod))
		tr.serve(web)
		g := NewGenerator(seed(tr.T), tr.World, tr.model, nil, NodeIngress)
		translated := 0
		for range tunnelPackets {
			frame := g.frame(tr.Device("eth1"), tr.at(tr.SecondClient, g.port()), tr.at(choose(g, tr.LoadBalancer, tr.External), servicePort), tr.protocol)
			frame.SourceMAC = secondGatewayMAC()
			g.vary(&frame)
			frame.VLANs = nil // no tunnel is looked for behind tags
			packet := g.bend(frame.Bytes())
			if len(packet) < frame.headersLength() {
				continue // of no socket buffer
			}
			tunnel := Tunnel{From: tr.otherNode().Of(tr.family), To: tr.Pod.Of(tr.family), Port: targetPort, TTL: 61}
			carrying := tunnel.In(packet, 0)
			if tr.compareBrought(packet, carrying, g.one(2)) {
				translated++
			}
		}
		if translated < tunnelPackets/3 {
			tr.Errorf("of %d packets %d were translated", tunnelPackets, translated)
		}
	})
}

// compareBrought runs a packet as the client would send it here and as another node brings it, in either order. It tells
// whether it was translated.
func (tr *trial) compareBrought(packet, carrying []byte, broughtFirst bool) bool {
	tr.Helper()
	var straight, brought Result
	run := func(result *Result, packet []byte) {
		*result = tr.runBrought(packet)
		result.Packet = bytes.Clone(result.Packet)
	}
	if broughtFirst {
		run(&brought, carrying)
	}
	run(&straight, packet)
	if !broughtFirst {
		run(&brought, carrying)
	}
	p, why := parse(packet)
	switch {
	case why != understood || p.tuple.from.Addr() != tr.SecondClient.Of(tr.family) || p.tuple.to.Port() == nodePort:
		return false // malformed, or it matters where it came from; a NodePort's middle may be the node's own
	case straight.Verdict == Pass && !bytes.Equal(straight.Packet, packet):
		if brought.Verdict != Pass || !bytes.Equal(brought.Packet, straight.Packet) {
			tr.Fatalf("the packet\n%swould have become\n%sbut in a tunnel it becomes (%s)\n%s",
				hex.Dump(packet), hex.Dump(straight.Packet), brought.Verdict, hex.Dump(brought.Packet))
		}
		return true
	case brought.Verdict != Drop && !bytes.Equal(brought.Packet, carrying):
		tr.Fatalf("the packet\n%s(%s) in a tunnel becomes (%s)\n%s", hex.Dump(packet), straight.Verdict, brought.Verdict, hex.Dump(brought.Packet))
	}
	return false
}
