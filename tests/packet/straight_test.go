package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
)

// A client that has reached a backend by a frontend connects to it straight, from the same port: the answers are left
// as they are once the first connection is over, and get the frontend's address as long as it lives.
func TestStraightConnectionFromTheSamePort(t *testing.T) {
	c := cases{protocols: []compile.Protocol{compile.TCP}, settings: quick()}
	forEach(t, c, func(tr *trial) {
		in, translated := tr.toLocal()
		tr.establish(in, translated)
		straight := tr.frame("eth0", in.From, translated.To)
		answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		wait()
		tr.expectUntouched("eth0", straight.Bytes())
		tr.expectOf(NodeEgress, "eth0", answer, Pass, answer.translated(in.To, in.From))

		first, last := in.later(), answer
		first.TCP.FIN, last.TCP.FIN = true, true
		tr.run("eth0", first.Bytes())
		tr.runProgram(NodeEgress, "eth0", last.Bytes())
		wait()
		tr.model.aged = true
		defer func() { tr.model.aged = false }()
		tr.expectUntouched("eth0", straight.Bytes())
		tr.wantTables(0, 0)
		tr.expectOf(NodeEgress, "eth0", answer, Pass, answer)
	})
}

// The same of a pod, and of a first connection that came to nothing: it was refused.
func TestStraightConnectionOfPod(t *testing.T) {
	c := podCases()
	c.protocols = []compile.Protocol{compile.TCP}
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		translated := in.translated(in.From, tr.at(tr.Remote, targetPort))
		tr.expect("pod0", in, Pass, translated)
		straight := tr.podFrame("pod0", in.From, translated.To)
		answer := translated.answer(tr.Device("pod0").MAC, podMAC())
		tr.expectUntouched("pod0", straight.Bytes())
		tr.wantTables(0, 2)

		refusal := answer
		refusal.TCP.RST = true
		tr.expectOf(PodEgress, "pod0", refusal, Pass, refusal.translated(in.To, in.From))
		tr.expectUntouched("pod0", straight.Bytes())
		tr.wantTables(0, 0)
		tr.expectOf(PodEgress, "pod0", answer, Pass, answer)
	})
}
