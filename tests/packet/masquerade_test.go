package packet

import (
	"bytes"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
)

const masqueradeMark = 1 << 14

// masquerading are the trials of programs that mark (masqueradeAll, rule C02).
func masquerading(programs ...Program) cases {
	settings := DefaultSettings()
	settings.Constants.MasqueradeMark = masqueradeMark
	return cases{programs: programs, settings: &settings}
}

func (tr *trial) wantMark(what string, want uint32) {
	tr.Helper()
	if got := tr.Mark(); got != want {
		tr.Errorf("%s has the mark %#x, want %#x", what, got, want)
	}
}

// The packets that begin a flow to a ClusterIP are marked, as often as they come; those of other frontends, to nobody
// and of an established flow are not.
func TestC02MarksWhatGoesToClusterIPs(t *testing.T) {
	forEach(t, masquerading(NodeIngress, PodIngress), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device, in := tr.ask(tr.at(tr.ClusterIP, servicePort))
		translated := in.translated(in.From, tr.at(tr.OtherPod, targetPort))
		for range 2 {
			tr.expect(device, in, Pass, translated)
			tr.wantMark("a first packet", masqueradeMark)
		}
		if tr.program == NodeIngress {
			tr.establish(in, translated)
			later := in.later()
			tr.expect(device, later, Pass, later.translated(in.From, translated.To))
			tr.wantMark("a packet of an established flow", 0)
		}
		in.From = tr.at(tr.Remote, clientPort+1)
		for what, to := range map[string]Pair{"load balancer": tr.LoadBalancer, "external": tr.External, "nobody": tr.NobodysIP} {
			in.To = tr.at(to, servicePort)
			tr.run(device, in.Bytes())
			tr.wantMark(what, 0)
		}
	})
}

// XDP has no marks: it leaves them to tc, as the packet came, and does the rest itself.
func TestC02XDPPassesUp(t *testing.T) {
	forEach(t, masquerading(NodeXDP), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device, in := tr.ask(tr.at(tr.ClusterIP, servicePort))
		result, err := tr.World.Run(NodeXDP, tr.Device(device), in.Bytes())
		if err != nil || result.Verdict != Pass || !bytes.Equal(result.Packet, in.Bytes()) {
			tr.Errorf("XDP made of it %s, %v", result.Verdict, err)
		}
		tr.model.counters.XdpPassedUp++
		tr.wantTables(0, 0)
		in.To = tr.at(tr.LoadBalancer, servicePort)
		tr.expect(device, in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
	})
}

// Without masqueradeAll nothing is marked.
func TestC02NoMark(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeIngress, PodIngress}, protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device, in := tr.ask(tr.at(tr.ClusterIP, servicePort))
		tr.run(device, in.Bytes())
		tr.wantMark("a first packet", 0)
	})
}
