package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// orders are those in which the fragments of a datagram of four come.
func orders() map[string][]int {
	return map[string][]int{"reversed": {3, 2, 1, 0}, "first second": {1, 0, 2, 3}, "last first": {3, 0, 1, 2}}
}

// expectReordered puts the fragments of a datagram on a wire in that order, and waits for all of them on another.
func (tr *trial) expectReordered(by *Wire, in Frame, order []int, device string, want Frame) {
	tr.Helper()
	var wires []*Wire // one for each fragment, for they come in any order
	for range order {
		wires = append(wires, tr.wire(device, false))
	}
	fragments := in.fragments(99, 1200)
	for _, i := range order {
		if err := by.Send(fragments[i]); err != nil {
			tr.Fatal(err)
		}
	}
	for i, fragment := range want.fragments(99, 1200) {
		if err := wires[i].Expect(fragment, patience); err != nil {
			tr.Fatal(err)
		}
	}
}

// A fragment that comes before the first is held, and goes on with it: at the node edge, both ways (rule X05).
func TestX05FragmentsOutOfOrder(t *testing.T) {
	for name, order := range orders() {
		t.Run(name, func(t *testing.T) {
			onWire(t, fragmentCases(), func(tr *trial) {
				tr.serve(tr.service("web", tr.remote(tr.RemoteSecond)))
				tr.attachNode("eth0", "eth1")
				in := tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort)).large(4000)
				translated := tr.routed(in.translated(tr.at(tr.NodeEth1, 61500), tr.at(tr.RemoteSecond, targetPort)), "eth1", secondGatewayMAC())
				tr.expectReordered(tr.wire("eth0", false), in, order, "eth1", translated)

				answer := translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC).large(4000)
				want := tr.routed(answer.translated(in.To, in.From), "eth0", gatewayMAC())
				tr.expectReordered(tr.wire("eth1", false), answer, order, "eth0", want)
			})
		})
	}
}

// At the pod edge, both ways (rule X05).
func TestX05FragmentsOutOfOrderOfPod(t *testing.T) {
	for name, order := range orders() {
		t.Run(name, func(t *testing.T) {
			onWire(t, fragmentCases(), func(tr *trial) {
				tr.serve(tr.service("web", tr.remote(tr.Remote)))
				tr.attachPod("pod0")
				in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort)).large(4000)
				translated := tr.routed(in.translated(in.From, tr.at(tr.Remote, targetPort)), "eth0", gatewayMAC())
				tr.expectReordered(tr.wire("pod0", false), in, order, "eth0", translated)

				answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC).large(4000)
				want := tr.routed(answer.translated(in.To, in.From), "pod0", podMAC())
				tr.expectReordered(tr.wire("eth0", false), answer, order, "pod0", want)
			})
		})
	}
}

// What this host itself sends to a VIP in fragments, and what it is answered so, is translated as its packets are
// (rules C01, X05), also where the answer comes by another device than the question has left by.
func TestX05FragmentsOfHost(t *testing.T) {
	forEach(t, fragmentCases(NodeEgress), func(tr *trial) {
		out, translated := tr.hostOpens(tr.remote(tr.RemoteSecond), tr.NodeEth1)
		answer := translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC).large(4000)
		moved := tr.arrivedBy(answer, "eth0")
		for range 2 { // as an embryo, and established
			tr.expectFragments(NodeEgress, "eth0", out.large(3000), Redirect, translated.large(3000))
			tr.expectFragments(NodeIngress, "eth1", answer, Redirect, moved)
			tr.expectFragments(NodeIngress, "eth0", moved, Pass, moved.translated(out.To, out.From))
		}
		tr.wantTables(2, 0)
	})
}

// A pod of this node answers its host in fragments.
func TestX05FragmentsToHost(t *testing.T) {
	forEach(t, fragmentCases(NodeEgress), func(tr *trial) {
		out, translated := tr.hostOpens(tr.local(tr.Pod), tr.PodGateway)
		tr.expectFragments(NodeEgress, "eth0", out.large(3000), Redirect, translated.large(3000))
		answer := translated.answer(podMAC(), tr.Device("pod0").MAC).large(4000)
		moved := tr.arrivedBy(answer, "eth0")
		tr.expectFragments(PodIngress, "pod0", answer, Redirect, moved)
		tr.expectFragments(NodeIngress, "eth0", moved, Pass, moved.translated(out.To, out.From))
	})
}

// A fragment of this host to a VIP, of whose datagram the first has not left, has nowhere to go (rules C05, X05).
func TestX05FragmentOfHostWithoutFirst(t *testing.T) {
	forEach(t, fragmentCases(NodeEgress), func(tr *trial) {
		tr.reserving()
		for _, vip := range []Pair{tr.ClusterIP, tr.LoadBalancer, tr.NobodysIP} {
			for _, fragment := range tr.hostFrame(clientPort, tr.at(vip, servicePort)).large(3000).fragments(5, 1200)[1:] {
				if result := tr.run("eth0", fragment); result.Verdict != Drop {
					tr.Errorf("to %v: the verdict is %s", vip, result.Verdict)
				}
			}
		}
		tr.expectUntouched("eth0", tr.hostFrame(clientPort, tr.at(tr.Remote, servicePort)).large(3000).fragments(5, 1200)[1])
		tr.expectCounters(maps.PacketCounters{DropFragment: 6, PassFragment: 1})
	})
}

// What comes as if it were of this host, to a connection of it whose backend has left, is treated as a whole packet is,
// whose answer is a reset: fragments have none.
func TestX05FragmentsOfEndedHostConnection(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeEgress}, protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		out, translated := tr.hostOpens(tr.remote(tr.Remote), tr.NodeEth0)
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.runProgram(NodeIngress, "eth0", answer.Bytes())
		tr.run("eth0", out.later().Bytes())
		tr.ended("eth0", out)
		forged := tr.arrivedBy(out.later().large(3000), "eth0")
		for _, fragment := range forged.fragments(77, 1200) {
			if result := tr.runProgram(NodeIngress, "eth0", fragment); result.Verdict != Drop {
				tr.Errorf("the verdict is %s, not drop", result.Verdict)
			}
		}
	})
}
