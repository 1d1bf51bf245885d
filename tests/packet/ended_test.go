package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// ended does what a sweep does to the connection of a packet whose backend is gone.
func (tr *trial) ended(device string, in Frame) {
	tr.Helper()
	id := flowID{tuple{in.From, in.To}, tr.Device(device).Record.EdgeId, uint8(in.Protocol)}
	if tr.model.flows[id] == nil {
		tr.Fatalf("there is no flow %+v", id)
	}
	if err := tr.model.end(tr.World, id); err != nil {
		tr.Fatal(err)
	}
}

// expectReset wants a packet of the client answered with a reset. XDP leaves that to tc.
func (tr *trial) expectReset(device string, in Frame) {
	tr.Helper()
	if tr.program.XDP() {
		tr.expectUntouched(device, in.Bytes())
		return
	}
	tr.compareUnpadded(tr.run(device, in.Bytes()), Redirect, resetOf(in, in.TCP.Acknowledged, 0, false))
}

// A connection of which the backend has left, and whose Service wants it reset: its client's next packet is answered with a
// reset. What the backend still sends goes to the client, and the client's reset to the backend, so that neither is left
// with half a connection. A SYN opens a new flow.
func TestEndedConnectionIsReset(t *testing.T) {
	forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		in, translated := tr.toRemote()
		tr.establish(in, translated)
		tr.ended("eth0", in)
		tr.expectReset("eth0", in.later())

		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.expect("eth0", answer, tr.sentVerdict(true), tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
		dead := in.later()
		dead.TCP.RST = true
		tr.expect("eth0", dead, tr.sentVerdict(true), tr.sent(dead.translated(translated.From, translated.To), "eth0", gatewayMAC()))

		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
	})
}

// The same with a backend on this node, whose answers leave by the egress program.
func TestEndedConnectionToLocalBackendIsReset(t *testing.T) {
	forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		in, translated := tr.toLocal()
		tr.establish(in, translated)
		tr.ended("eth0", in)
		tr.expectReset("eth0", in.later())
		answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		tr.expectOf(NodeEgress, "eth0", answer, Pass, answer.translated(in.To, in.From))
		dead := in.later()
		dead.TCP.RST = true
		tr.expect("eth0", dead, Pass, dead.translated(in.From, translated.To))
	})
}

// The same of a pod's connections, and of those to itself.
func TestEndedConnectionOfAPodIsReset(t *testing.T) {
	for name, hairpin := range map[string]bool{"elsewhere": false, "itself": true} {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{programs: []Program{PodIngress}, protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
				backend := tr.remote(tr.Remote)
				if hairpin {
					backend = tr.local(tr.Pod)
				}
				tr.serve(tr.service("web", backend))
				in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
				seen := tr.tupleOf(tr.run("pod0", in.Bytes()))
				answer := in.translated(seen.from, seen.to).answer(podMAC(), tr.Device("pod0").MAC)
				program := PodEgress
				if hairpin {
					program = PodIngress
				}
				tr.runProgram(program, "pod0", answer.Bytes())
				tr.run("pod0", in.later().Bytes())
				tr.wantTables(2, 0)

				tr.ended("pod0", in)
				tr.expectReset("pod0", in.later())
				back := tr.tupleOf(tr.runProgram(program, "pod0", answer.Bytes()))
				dead := in.later()
				dead.TCP.RST = true
				if forth := tr.tupleOf(tr.run("pod0", dead.Bytes())); back != (tuple{in.To, in.From}) || forth != seen {
					tr.Errorf("the answer has become %v, and the client's reset %v", back, forth)
				}
				tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowEstablished: 1, RejectTcpReset: 1})
			})
		})
	}
}

// The same of this host's own connections: the stack gets the reset.
func TestEndedConnectionOfThisHostIsReset(t *testing.T) {
	c := hostCases()
	c.protocols = []compile.Protocol{compile.TCP}
	forEach(t, c, func(tr *trial) {
		out, translated := tr.hostOpens(tr.remote(tr.Remote), tr.NodeEth0)
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.runProgram(NodeIngress, "eth0", answer.Bytes())
		tr.run("eth0", out.later().Bytes())
		tr.ended("eth0", out)
		tr.expectReset("eth0", out.later())
		tr.expectOf(NodeIngress, "eth0", answer, Pass, answer.translated(out.To, out.From))
		dead := out.later()
		dead.TCP.RST = true
		tr.expect("eth0", dead, Redirect, dead.translated(translated.From, translated.To))
	})
}
