package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// outbound returns a packet that the node sends itself, and the answer as it arrives.
func (tr *trial) outbound(port uint16) (out, answer Frame) {
	out = tr.frame("eth0", tr.at(tr.NodeEth0, port), tr.at(tr.Remote, 443))
	out.SourceMAC, out.DestinationMAC = tr.Device("eth0").MAC, gatewayMAC()
	return out, out.answer(gatewayMAC(), tr.Device("eth0").MAC)
}

// The node's own connection from a port that is a NodePort, or of the SNAT range, is recorded where it leaves;
// its answers pass untouched.
func TestForeignFlow(t *testing.T) {
	for name, port := range map[string]uint16{"node port": nodePort, "SNAT range": 61234} {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.Pod)))
				out, answer := tr.outbound(port)
				tr.expectOf(NodeEgress, "eth0", out, Pass, out)
				tr.expect("eth0", answer, Pass, answer)
				tr.expectOf(NodeEgress, "eth0", out.later(), Pass, out.later())
				tr.expectCounters(maps.PacketCounters{FlowForeign: 1, PassForeign: 1})
				tr.wantTables(1, 0)
			})
		})
	}
}

// Other clients of the same NodePort are served beside it.
func TestForeignFlowIsOneTuple(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		out, _ := tr.outbound(nodePort)
		tr.expectOf(NodeEgress, "eth0", out, Pass, out)
		for _, from := range []uint16{clientPort, 444} {
			in := tr.frame("eth0", tr.at(tr.Remote, from), tr.at(tr.NodeEth0, nodePort))
			tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
		}
	})
}

// What could not be taken for an answer of ours is not recorded.
func TestNotForeign(t *testing.T) {
	packets := map[string]func(tr *trial, out *Frame){
		"a port that is no frontend's": func(tr *trial, out *Frame) { out.From = tr.at(tr.NodeEth0, nodePort+1) },
		"the service's port":           func(tr *trial, out *Frame) { out.From = tr.at(tr.NodeEth0, servicePort) },
		"a pod's own address":          func(tr *trial, out *Frame) { out.From = tr.at(tr.Pod, nodePort) },
		"another protocol":             func(tr *trial, out *Frame) { out.Protocol = compile.TCP + compile.UDP - tr.protocol },
		"a reset":                      func(_ *trial, out *Frame) { out.Protocol = compile.TCP; out.TCP = TCPFields{RST: true} },
	}
	for name, change := range packets {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{programs: []Program{NodeEgress}, protocols: withSockets()}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.Pod)))
				out, _ := tr.outbound(nodePort)
				change(tr, &out)
				tr.expect("eth0", out, Pass, out)
				tr.expectCounters(maps.PacketCounters{})
				tr.wantTables(0, 0)
			})
		})
	}
}

// What we send ourselves, forward to the backend and back to the client, passes the egress program of the
// device it leaves by, and is not taken for foreign.
func TestOwnPacketsAreNotForeign(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.NodeEth0, nodePort))
		port := tr.tupleOf(tr.run("eth0", in.Bytes())).from.Port()
		translated := in.translated(tr.at(tr.NodeEth0, port), tr.at(tr.Remote, targetPort))
		tr.expectOf(NodeEgress, "eth0", translated, Pass, translated)
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.run("eth0", answer.Bytes())
		back := answer.translated(in.To, in.From)
		tr.expectOf(NodeEgress, "eth0", back, Pass, back)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
		tr.wantTables(0, 2)
	})
}

// The answer of a local backend, once turned back, passes a second egress program untouched: a VLAN's device
// stands on another.
func TestTurnedBackAnswerIsNotForeign(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.NodeEth0, nodePort))
		tr.run("eth0", in.Bytes())
		translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
		answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		back := answer.translated(in.To, in.From)
		tr.expectOf(NodeEgress, "eth0", answer, Pass, back)
		tr.expectOf(NodeEgress, "eth0", back, Pass, back)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
		tr.wantTables(0, 2)
	})
}

// A packet that the node sends, and that nobody answers to us, passes the egress program untouched.
func TestEgressOfOthers(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeEgress}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		out := tr.frame("eth0", tr.at(tr.Pod, clientPort), tr.at(tr.Client, 443))
		tr.expect("eth0", out, Pass, out)
		tr.expectCounters(maps.PacketCounters{})
	})
}
