package packet

import (
	"fmt"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Translations are all that the programs do to packets of flows: questions and answers, of embryos and of established
// flows, at each edge. A test of what they keep of a packet runs through them all.
type translation struct {
	programs []Program
	test     func(tr *trial)
}

func translations() map[string]translation {
	return map[string]translation{
		"local backend":  {nil, (*trial).keepsToLocal},
		"remote backend": {nil, (*trial).keepsToRemote},
		"pod":            {[]Program{PodIngress}, (*trial).keepsOfPod},
		"hairpin":        {[]Program{PodIngress}, (*trial).keepsOfHairpin},
		"host":           {[]Program{NodeEgress}, (*trial).keepsOfHost},
		"host to pod":    {[]Program{NodeEgress}, (*trial).keepsOfHostToPod},
	}
}

// onEachTranslation runs packets that have been changed, all in the same way, through every translation. Everything
// but what is translated has to stay.
func onEachTranslation(t *testing.T, c cases, change func(f *Frame)) {
	t.Helper()
	for name, translation := range translations() {
		t.Run(name, func(t *testing.T) {
			c := c
			c.programs = translation.programs
			forEach(t, c, func(tr *trial) {
				tr.change = change
				translation.test(tr)
			})
		})
	}
}

func (tr *trial) keepsToLocal() {
	in, translated := tr.toLocal()
	answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
	for range 2 {
		tr.expectOf(NodeEgress, "eth0", answer, Pass, answer.translated(in.To, in.From))
		later := in.later()
		tr.expect("eth0", later, Pass, later.translated(later.From, translated.To))
	}
	tr.wantTables(2, 0)
}

func (tr *trial) keepsToRemote() {
	in, translated := tr.toRemote()
	answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
	for range 2 {
		tr.expect("eth0", answer, tr.sentVerdict(true), tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
		later := in.later()
		want := tr.sent(later.translated(translated.From, translated.To), "eth0", gatewayMAC())
		tr.expect("eth0", later, tr.sentVerdict(true), want)
	}
	tr.wantTables(2, 0)
}

func (tr *trial) keepsOfPod() {
	tr.serve(tr.service("web", tr.remote(tr.Remote)))
	in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
	translated := in.translated(in.From, tr.at(tr.Remote, targetPort))
	tr.expect("pod0", in, Pass, translated)
	answer := translated.answer(tr.Device("pod0").MAC, podMAC())
	for range 2 {
		tr.expectOf(PodEgress, "pod0", answer, Pass, answer.translated(in.To, in.From))
		later := in.later()
		tr.expect("pod0", later, Pass, later.translated(later.From, translated.To))
	}
	tr.wantTables(2, 0)
}

func (tr *trial) keepsOfHairpin() {
	tr.serve(tr.service("web", tr.local(tr.Pod)))
	in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
	result := tr.run("pod0", in.Bytes())
	translated := in.translated(tr.at(tr.PodGateway, tr.tupleOf(result).from.Port()), tr.at(tr.Pod, targetPort))
	tr.compare(result, Redirect, translated.returned().Bytes())
	answer := translated.answer(podMAC(), tr.Device("pod0").MAC)
	tr.expect("pod0", answer, Redirect, answer.translated(in.To, in.From).returned())
}

// returned is what goes back out of the device that it came by.
func (f Frame) returned() Frame {
	f.SourceMAC, f.DestinationMAC, f.TTL = f.DestinationMAC, f.SourceMAC, f.TTL-1
	return f
}

func (tr *trial) keepsOfHost() {
	out, translated := tr.hostOpens(tr.remote(tr.Remote), tr.NodeEth0)
	answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
	for range 2 {
		tr.expectOf(NodeIngress, "eth0", answer, Pass, answer.translated(out.To, out.From))
		later := out.later()
		tr.expect("eth0", later, Redirect, later.translated(translated.From, translated.To))
	}
	tr.wantTables(2, 0)
}

func (tr *trial) keepsOfHostToPod() {
	out, translated := tr.hostOpens(tr.local(tr.Pod), tr.PodGateway)
	answer := translated.answer(podMAC(), tr.Device("pod0").MAC)
	moved := tr.arrivedBy(answer, "eth0")
	tr.expectOf(PodIngress, "pod0", answer, Redirect, moved)
	tr.expectOf(NodeIngress, "eth0", moved, Pass, moved.translated(out.To, out.From))
}

// DSCP and ECN stay as they are: the mark of a congested router reaches whom it is for (RFC 3168, 5).
func TestTrafficClassStays(t *testing.T) {
	for _, class := range []uint8{0xb9, 0x03, 0} { // expedited forwarding with ECT(1); congestion experienced; none
		t.Run(fmt.Sprintf("%#02x", class), func(t *testing.T) {
			onEachTranslation(t, cases{}, func(f *Frame) { f.TrafficClass = class })
		})
	}
}

// UDP without a checksum has none behind any of the programs (rule X07).
func TestX07NoChecksumAtEachEdge(t *testing.T) {
	c := cases{protocols: []compile.Protocol{compile.UDP}, families: []compile.Family{compile.IPv4}}
	onEachTranslation(t, c, func(f *Frame) { f.NoChecksum = true })
}
