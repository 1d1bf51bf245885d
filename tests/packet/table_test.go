package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// crowded are settings with room for two flows.
func crowded() *Settings {
	settings := DefaultSettings()
	settings.Sizes.FlowsIPv4, settings.Sizes.FlowsIPv6 = 4, 4
	return &settings
}

// With the flow table full a new flow is refused and counted, once the client would establish it; the
// established ones go on, and room that is made is used.
func TestFlowTableFull(t *testing.T) {
	forEach(t, cases{settings: crowded()}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		var flows [3]Frame
		for i := range flows {
			flows[i] = tr.frame("eth0", tr.at(tr.Client, clientPort+uint16(i)), tr.at(tr.LoadBalancer, servicePort))
			translated := flows[i].translated(flows[i].From, tr.at(tr.Pod, targetPort))
			tr.expect("eth0", flows[i], Pass, translated)
			answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
			tr.runProgram(NodeEgress, "eth0", answer.Bytes())
		}
		for _, in := range flows[:2] {
			tr.expect("eth0", in.later(), Pass, in.later().translated(in.From, tr.at(tr.Pod, targetPort)))
		}
		tr.expectDrop("eth0", flows[2].later())
		tr.expectCounters(maps.PacketCounters{FlowNew: 3, FlowEstablished: 2, DropFlowTableFull: 1})
		tr.wantTables(4, 2)
		tr.expect("eth0", flows[0].later(), Pass, flows[0].later().translated(flows[0].From, tr.at(tr.Pod, targetPort)))

		tr.forget(flows[0])
		last := flows[2].later()
		tr.expect("eth0", last, Pass, last.translated(last.From, tr.at(tr.Pod, targetPort)))
		tr.wantTables(4, 0)
	})
}

// forget takes both halves of an established flow out, as a sweep does.
func (tr *trial) forget(in Frame) {
	tr.Helper()
	id := flowID{tuple{in.From, in.To}, 0, uint8(tr.protocol)}
	other := id.other(tr.model.flows[id].to)
	for _, half := range []flowID{id, other} {
		if err := remove(tr.Maps.FlowTable(), tr.model.flows, half); err != nil {
			tr.Fatal(err)
		}
	}
}

// evict takes one half of an embryo out, as an LRU does.
func (tr *trial) evict(half flowID) {
	tr.Helper()
	if err := remove(tr.Maps.EmbryoTable(), tr.model.embryos, half); err != nil {
		tr.Fatal(err)
	}
}

// With the flow table full a foreign flow is not recorded, and passes.
func TestFlowTableFullOfForeign(t *testing.T) {
	forEach(t, cases{settings: crowded(), programs: []Program{NodeEgress}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		for port := uint16(1); port <= 5; port++ {
			out, _ := tr.outbound(nodePort)
			out.To = tr.at(tr.Remote, port)
			tr.expect("eth0", out, Pass, out)
		}
		tr.expectCounters(maps.PacketCounters{FlowForeign: 4})
	})
}

// A reverse half that has been evicted is put back by the client's next packet.
func TestLostReverseIsRebuilt(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toLocal()
		reverse := flowID{tuple{translated.To, translated.From}, 0, uint8(tr.protocol)}
		tr.evict(reverse)
		tr.expect("eth0", in, Pass, translated)
		tr.wantTables(0, 2)
		answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		tr.expectOf(NodeEgress, "eth0", answer, Pass, answer.translated(in.To, in.From))
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowReverseRebuilt: 1})
	})
}

// The half that is put back finds its own way: not the next hop that the other half remembers.
func TestRebuiltReverseGoesItsOwnWay(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteSecond)))
		in := tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort))
		translated := in.translated(tr.at(tr.NodeEth1, 61500), tr.at(tr.RemoteSecond, targetPort))
		for range 2 {
			want := tr.sent(translated, "eth1", secondGatewayMAC())
			tr.expect("eth0", in, tr.sentVerdict(false), want)
		}
		tr.evict(flowID{tuple{translated.To, translated.From}, 0, uint8(tr.protocol)})
		tr.run("eth0", in.Bytes())
		answer := translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC)
		want := tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC())
		tr.expect("eth1", answer, tr.sentVerdict(false), want)
	})
}

// A reverse half that has been evicted, and whose port another flow has got since, makes the client's next
// packet open a flow of its own.
func TestLostReverseThatAnotherHas(t *testing.T) {
	c := cases{settings: narrow(2)}
	forEach(t, c, func(tr *trial) {
		in, translated := tr.toRemote()
		reverse := flowID{tuple{translated.To, translated.From}, 0, uint8(tr.protocol)}
		tr.evict(reverse)
		other := tr.opened(tr.at(tr.OtherClient, translated.From.Port()), in.To)
		if other.from.Port() != translated.From.Port() {
			tr.Fatalf("the other client got %v", other.from)
		}
		if again := tr.opened(in.From, in.To); again.from.Port() == translated.From.Port() {
			tr.Errorf("two flows have %v", again.from)
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 3})
	})
}

// A flood of first packets churns the embryos alone: an established flow goes on.
func TestFloodLeavesEstablishedFlows(t *testing.T) {
	settings := DefaultSettings()
	settings.Sizes.Embryos = 256
	forEach(t, cases{settings: &settings, protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		in, translated := tr.toLocal()
		tr.establish(in, translated)
		for i := range uint16(2000) {
			flood := tr.frame("eth0", tr.at(tr.OtherClient, 1024+i), in.To)
			tr.expectUnmodelled("eth0", flood, Pass)
		}
		later := in.later()
		result := tr.expectUnmodelled("eth0", later, Pass)
		tr.compare(result, Pass, later.translated(later.From, translated.To).Bytes())
		embryos, err := tr.halves(tr.Maps.EmbryoTable())
		if err != nil {
			tr.Fatal(err)
		}
		if len(embryos) > 256 {
			tr.Errorf("there are %d halves of embryos", len(embryos))
		}
		tr.begin() // the model has not followed the flood
	})
}
