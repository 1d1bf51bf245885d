package packet

import (
	"net"
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

func hostCases() cases { return cases{programs: []Program{NodeEgress}} }

// hostFrame returns what this host sends to a VIP, as it leaves by eth0, where the default route leads.
func (tr *trial) hostFrame(port uint16, to netip.AddrPort) Frame {
	out := tr.frame("eth0", tr.at(tr.NodeEth0, port), to)
	out.SourceMAC, out.DestinationMAC = tr.Device("eth0").MAC, gatewayMAC()
	return out
}

// hostOpens sends this host's first packet to a VIP, and returns it, and what it became on its way from `source`.
func (tr *trial) hostOpens(backend compile.Backend, source Pair) (out, translated Frame) {
	tr.Helper()
	tr.serve(tr.service("web", backend))
	out = tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort))
	result := tr.run("eth0", out.Bytes())
	port := tr.tupleOf(result).from.Port()
	if port < 61000 {
		tr.Errorf("the source port %d is not of the SNAT range", port)
	}
	translated = out.translated(tr.at(source, port), backend.Address)
	tr.compare(result, Redirect, translated.Bytes())
	return out, translated
}

// arrivedBy returns a frame as our program makes it come by another device.
func (tr *trial) arrivedBy(f Frame, device string) Frame {
	f.SourceMAC, f.DestinationMAC = net.HardwareAddr("\x02weir\x00"), tr.Device(device).MAC
	return f
}

// What this host sends to a VIP goes to its backend with the node's address on the way there; TTL and MACs are the
// kernel's affair. The answer is the VIP's to the stack (rules C01, L08).
func TestC01HostToRemote(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		out, translated := tr.hostOpens(tr.remote(tr.Remote), tr.NodeEth0)
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.expectOf(NodeIngress, "eth0", answer, Pass, answer.translated(out.To, out.From))
		later := out.later()
		tr.expect("eth0", later, Redirect, later.translated(translated.From, translated.To))
		tr.wantTables(2, 0)
		tr.expectOf(NodeIngress, "eth0", answer, Pass, answer.translated(out.To, out.From))
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowEstablished: 1})
	})
}

// Every kind of frontend that is not an address of the node is asked so.
func TestHostToEachKind(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		for i, vip := range []Pair{tr.ClusterIP, tr.LoadBalancer, tr.External} {
			out := tr.hostFrame(clientPort+uint16(i), tr.at(vip, servicePort))
			if to := tr.tupleOf(tr.run("eth0", out.Bytes())).to; to != tr.at(tr.Remote, targetPort) {
				tr.Errorf("what is sent to %v goes to %v", out.To, to)
			}
		}
	})
}

// The answer comes by the device that leads to the backend, and is made to come by the one that the question left by:
// for the stack the VIP is there.
func TestHostAnswerByAnotherDevice(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		out, translated := tr.hostOpens(tr.remote(tr.RemoteSecond), tr.NodeEth1)
		answer := translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC)
		moved := tr.arrivedBy(answer, "eth0")
		tr.expectOf(NodeIngress, "eth1", answer, Redirect, moved)
		tr.expectOf(NodeIngress, "eth0", moved, Pass, moved.translated(out.To, out.From))
	})
}

// Where the question left by a bridge, any port of that will do, and what comes otherwise gets the bridge's MAC.
func TestHostAsksByBridge(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort))
		port := tr.tupleOf(tr.run("br0p", out.Bytes())).from.Port()
		translated := out.translated(tr.at(tr.NodeEth0, port), tr.at(tr.Remote, targetPort))
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		moved := tr.arrivedBy(answer, "br0")
		tr.expectOf(NodeIngress, "eth0", answer, Redirect, moved)
		tr.expectOf(NodeIngress, "br0p", moved, Pass, moved.translated(out.To, out.From))
	})
}

// XDP leaves answers to this host to tc.
func TestHostAnswerAtXDP(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		_, translated := tr.hostOpens(tr.remote(tr.Remote), tr.NodeEth0)
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.expectOf(NodeXDP, "eth0", answer, Pass, answer)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, XdpPassedUp: 1})
	})
}

// A pod of this node is reached the same way. Its answers come by its own edge.
func TestHostToLocal(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		out, translated := tr.hostOpens(tr.local(tr.Pod), tr.PodGateway)
		tr.expectOf(PodEgress, "pod0", translated, Pass, translated)
		answer := translated.answer(podMAC(), tr.Device("pod0").MAC)
		moved := tr.arrivedBy(answer, "eth0")
		tr.expectOf(PodIngress, "pod0", answer, Redirect, moved)
		tr.expectOf(NodeIngress, "eth0", moved, Pass, moved.translated(out.To, out.From))
		tr.run("eth0", out.later().Bytes())
		tr.wantTables(2, 0)
		tr.expectOf(PodIngress, "pod0", answer, Redirect, moved)
	})
}

// A pod cannot answer for another one.
func TestHostAnswerOfAnotherPod(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		_, translated := tr.hostOpens(tr.local(tr.Pod), tr.PodGateway)
		answer := translated.answer(podMAC(), tr.Device("pod1").MAC)
		if result := tr.runProgram(PodIngress, "pod1", answer.Bytes()); result.Verdict != Drop {
			tr.Errorf("the verdict is %s", result.Verdict)
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, DropSnatOrphan: 1})
	})
}

// A server on this host sees the VIP as its client: so its answer leaves, and comes back.
func TestHostToItself(t *testing.T) {
	servers := map[string]func(tr *trial) compile.Backend{
		"a local endpoint":     func(tr *trial) compile.Backend { return tr.local(tr.NodeEth1) },
		"the node's address":   func(tr *trial) compile.Backend { return tr.remote(tr.NodeEth1) },
		"of the asking device": func(tr *trial) compile.Backend { return tr.remote(tr.NodeEth0) },
	}
	for name, server := range servers {
		t.Run(name, func(t *testing.T) {
			forEach(t, hostCases(), func(tr *trial) {
				tr.serve(tr.service("web", server(tr)))
				out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort))
				result := tr.run("eth0", out.Bytes())
				port := tr.tupleOf(result).from.Port()
				question := tr.arrivedBy(out.translated(tr.at(tr.ClusterIP, port), server(tr).Address), "eth0")
				tr.compare(result, Redirect, question.Bytes())
				tr.expectOf(NodeIngress, "eth0", question, Pass, question)

				answer := question.answer(tr.Device("eth0").MAC, gatewayMAC())
				back := tr.arrivedBy(answer, "eth0")
				tr.expect("eth0", answer, Redirect, back)
				tr.expectOf(NodeIngress, "eth0", back, Pass, back.translated(out.To, out.From))
				tr.run("eth0", out.later().Bytes())
				tr.wantTables(2, 0)
			})
		})
	}
}

// This host is inside: it has that table, whatever the policy for traffic from outside (rule P03).
func TestP03HostIsInside(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		web := tr.service("web", tr.remote(tr.Remote))
		web.Outside = nil
		tr.serve(web)
		out := tr.hostFrame(clientPort, tr.at(tr.LoadBalancer, servicePort))
		if result := tr.run("eth0", out.Bytes()); result.Verdict != Redirect {
			tr.Errorf("the verdict is %s", result.Verdict)
		}
	})
}

// Two sockets of one port to two VIPs of a backend are two flows to it.
func TestHostOnePortTwoFrontends(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		seen := make(map[tuple]bool)
		for _, vip := range []Pair{tr.ClusterIP, tr.LoadBalancer} {
			out := tr.hostFrame(61500, tr.at(vip, servicePort))
			translated := tr.tupleOf(tr.run("eth0", out.Bytes()))
			seen[translated] = true
			answer := out.translated(translated.from, translated.to).answer(gatewayMAC(), tr.Device("eth0").MAC)
			tr.expectOf(NodeIngress, "eth0", answer, Pass, answer.translated(out.To, out.From))
		}
		if len(seen) != 2 {
			tr.Errorf("the flows have the tuples %v", seen)
		}
	})
}

// A packet to a VIP is no connection of the node's own that looks like ours, whatever its source port.
func TestHostPacketIsNotForeign(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		for _, port := range []uint16{nodePort, 61500} {
			tr.run("eth0", tr.hostFrame(port, tr.at(tr.ClusterIP, servicePort)).Bytes())
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 2})
	})
}

// What we have translated passes the program of the device it leaves by untouched.
func TestHostPacketTranslatedOnce(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		_, translated := tr.hostOpens(tr.remote(tr.RemoteSecond), tr.NodeEth1)
		tr.expect("eth1", translated, Pass, translated)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
	})
}

// What the node forwards is not its own: a pod's packet to a VIP that the pod's edge has left alone.
func TestForwardedPacketIsNotOfHost(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort)).Bytes()
		result, err := tr.RunForwarded(NodeEgress, tr.Device("pod0"), tr.Device("eth0"), out)
		tr.must(err)
		tr.compare(result, Pass, out)
	})
}
