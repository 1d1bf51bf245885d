package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// toLocal opens a flow to a local backend and returns the client's first packet and what it became.
func (tr *trial) toLocal() (in, translated Frame) {
	tr.Helper()
	tr.serve(tr.service("web", tr.local(tr.Pod)))
	in = tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
	translated = in.translated(in.From, tr.at(tr.Pod, targetPort))
	tr.expect("eth0", in, Pass, translated)
	return in, translated
}

// toRemote opens a flow to a remote backend and returns the client's first packet and what it became.
func (tr *trial) toRemote() (in, translated Frame) {
	tr.Helper()
	tr.serve(tr.service("web", tr.remote(tr.Remote)))
	in = tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
	result := tr.run("eth0", in.Bytes())
	port := tr.tupleOf(result).from.Port()
	translated = in.translated(tr.at(tr.NodeEth0, port), tr.at(tr.Remote, targetPort))
	tr.compare(result, tr.sentVerdict(true), tr.sent(translated, "eth0", gatewayMAC()).Bytes())
	return in, translated
}

// The answer of a local backend gets the frontend's address where it leaves.
func TestAnswerOfLocalBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toLocal()
		answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		tr.expectOf(NodeEgress, "eth0", answer, Pass, answer.translated(in.To, in.From))
	})
}

// The answer of a remote backend gets the frontend's address and goes to the client, one hop older.
func TestAnswerOfRemoteBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toRemote()
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		want := tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC())
		tr.expect("eth0", answer, tr.sentVerdict(true), want)
	})
}

// The answer of a local backend that would leave by another device than the client came by is sent by that one.
func TestAnswerLeavesByArrivalDevice(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toLocal()
		answer := translated.answer(tr.Device("eth1").MAC, secondGatewayMAC())
		tr.expectOf(NodeEgress, "eth1", answer, Redirect, answer.translated(in.To, in.From))
	})
}

// An answer of a local backend that is too long for the device the client came by is answered with what fits there.
func TestAnswerTooBigForArrivalDevice(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth3", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
		tr.expect("eth3", in, Pass, translated)
		answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		answer.Payload = make([]byte, 1400)
		quoted := min(tr.ipLength(answer)&^3, mostQuoted)
		tr.compare(tr.runProgram(NodeEgress, "eth0", answer.Bytes()), Redirect,
			tr.errorPacket(answer, answer.To.Addr(), 0x0304, 0x0200, 1300, quoted))
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, IcmpTooBig: 1})
	})
}

// The answer of a remote backend is sent to where the client came from, although a route leads elsewhere.
func TestAnswerReturnsByArrivalDevice(t *testing.T) {
	forEach(t, cases{families: []compile.Family{compile.IPv4}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		// eth1 has a route to this client, eth0 has the default route only.
		in := tr.frame("eth0", tr.at(tr.SecondClient, clientPort), tr.at(tr.LoadBalancer, servicePort))
		port := tr.tupleOf(tr.run("eth0", in.Bytes())).from.Port()
		answer := in.translated(tr.at(tr.NodeEth0, port), tr.at(tr.Remote, targetPort)).
			answer(gatewayMAC(), tr.Device("eth0").MAC)
		want := tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC())
		tr.expect("eth0", answer, tr.sentVerdict(true), want)
	})
}

// The client's first packet after the backend's answer moves the flow from the embryos to the flow table; a
// packet before leaves it there.
func TestClientsAnswerEstablishes(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toLocal()
		later := in.later()
		tr.expect("eth0", later, Pass, later.translated(later.From, translated.To))
		tr.wantTables(0, 2)
		answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		tr.runProgram(NodeEgress, "eth0", answer.Bytes())
		tr.wantTables(0, 2)
		tr.expect("eth0", later, Pass, later.translated(later.From, translated.To))
		tr.wantTables(2, 0)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, FlowEstablished: 1})
	})
}

// wantTables compares how many halves of flows there are.
func (tr *trial) wantTables(flows, embryos int) {
	tr.Helper()
	established, err := tr.halves(tr.Maps.FlowTable())
	if err != nil {
		tr.Fatal(err)
	}
	unanswered, err := tr.halves(tr.Maps.EmbryoTable())
	if err != nil {
		tr.Fatal(err)
	}
	if len(established) != flows || len(unanswered) != embryos {
		tr.Errorf("there are %d halves of flows and %d of embryos, not %d and %d",
			len(established), len(unanswered), flows, embryos)
	}
}

// establish makes a flow of two packets an established one.
func (tr *trial) establish(in, translated Frame) {
	tr.Helper()
	if translated.From == in.From {
		tr.runProgram(NodeEgress, "eth0", translated.answer(tr.Device("eth0").MAC, gatewayMAC()).Bytes())
	} else {
		tr.run("eth0", translated.answer(gatewayMAC(), tr.Device("eth0").MAC).Bytes())
	}
	tr.run("eth0", in.later().Bytes())
	tr.wantTables(2, 0)
}

// Packets of an established flow go on both ways, and keep going when the Service is gone (rules X01, D03).
func TestX01EstablishedFlowOutlivesService(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toRemote()
		tr.establish(in, translated)
		tr.serve()
		later := in.later()
		want := tr.sent(later.translated(translated.From, translated.To), "eth0", gatewayMAC())
		tr.expect("eth0", later, tr.sentVerdict(true), want)
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		want = tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC())
		tr.expect("eth0", answer, tr.sentVerdict(true), want)
	})
}

// A service's new backends get new flows only (rule T04).
func TestT04EstablishedFlowKeepsItsBackend(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toLocal()
		tr.establish(in, translated)
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		later := in.later()
		tr.expect("eth0", later, Pass, later.translated(later.From, tr.at(tr.Pod, targetPort)))
		fresh := tr.frame("eth0", tr.at(tr.OtherClient, clientPort), in.To)
		tr.expect("eth0", fresh, Pass, fresh.translated(fresh.From, tr.at(tr.OtherPod, targetPort)))
	})
}

// A retransmitted SYN of a flow that nobody has answered goes the same way again.
func TestX10RetransmittedSYN(t *testing.T) {
	forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		in, translated := tr.toRemote()
		want := tr.sent(in.translated(translated.From, translated.To), "eth0", gatewayMAC())
		tr.expect("eth0", in, tr.sentVerdict(true), want)
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
	})
}

// A SYN on a connection that has ended, by a FIN or a RST of either side, opens a new flow (rule X10).
func TestX10SYNOnClosedFlow(t *testing.T) {
	ends := map[string]func(in, translated Frame) (Frame, bool){
		"client's FIN":  func(in, _ Frame) (Frame, bool) { in = in.later(); in.TCP.FIN = true; return in, true },
		"client's RST":  func(in, _ Frame) (Frame, bool) { in = in.later(); in.TCP.RST = true; return in, true },
		"backend's FIN": func(_, out Frame) (Frame, bool) { out.TCP.FIN = true; return out, false },
		"backend's RST": func(_, out Frame) (Frame, bool) { out.TCP.RST = true; return out, false },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
				in, translated := tr.toLocal()
				tr.establish(in, translated)
				last, fromClient := end(in, translated.answer(tr.Device("eth0").MAC, gatewayMAC()))
				if fromClient {
					tr.run("eth0", last.Bytes())
				} else {
					tr.runProgram(NodeEgress, "eth0", last.Bytes())
				}
				tr.serve(tr.service("web", tr.local(tr.OtherPod)))
				tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
				tr.expectCounters(maps.PacketCounters{FlowNew: 2, FlowEstablished: 1})
				tr.wantTables(0, 2)
			})
		})
	}
}

// A SYN on a connection that lives changes nothing: the backend answers for it (RFC 5961).
func TestX10SYNOnLivingFlow(t *testing.T) {
	forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		in, translated := tr.toLocal()
		tr.establish(in, translated)
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		tr.expect("eth0", in, Pass, translated)
		tr.wantTables(2, 0)
	})
}

// A SYN on a connection whose backend has been silent for a minute opens a new flow, however often the client has
// knocked; with one that the Service no longer has it takes three seconds, and none where the record is another's.
func TestX10SYNOnSilentFlow(t *testing.T) {
	const gone, kept = true, false
	for name, test := range map[string]struct {
		client, backend int // seconds since they were heard
		gone            bool
		generation      uint32 // by how much the backend's has grown
		fresh           bool
	}{
		"just below a minute":           {59, 55, kept, 0, false},
		"a minute":                      {61, 61, kept, 0, true},
		"a minute, the client knocking": {0, 61, kept, 0, true},
		"the client silent":             {61, 0, kept, 0, false},
		"gone, heard":                   {1, 1, gone, 0, false},
		"gone, silent":                  {0, 4, gone, 0, true},
		"another's":                     {0, 0, kept, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
				in, translated := tr.toLocal()
				tr.establish(in, translated)
				tr.silence(in, translated, test.client, test.backend)
				if test.gone {
					tr.serve(tr.service("web", tr.local(tr.OtherPod)))
				}
				tr.replaceBackend(in, test.generation)
				established, embryos := 2, 0
				if test.fresh {
					established, embryos = 0, 2
				}
				tr.expectUnmodelled("eth0", in, Pass)
				tr.wantHalves(established, embryos)
				tr.begin() // the model knows no time
			})
		})
	}
}

// silence makes both sides of an established flow silent for so many seconds.
func (tr *trial) silence(in, translated Frame, client, backend int) {
	tr.Helper()
	perSecond := DefaultSettings().Constants.JiffiesPerSecond
	for id, seconds := range map[flowID]int{
		{tuple{in.From, in.To}, 0, uint8(tr.protocol)}:                 client,
		{tuple{translated.To, translated.From}, 0, uint8(tr.protocol)}: backend,
	} {
		key := flowKeyOf(id)
		flow, err := tr.Maps.FlowTable().Lookup(key)
		tr.must(err)
		flow.LastSeen -= uint32(seconds) * perSecond
		tr.must(tr.Maps.FlowTable().Put(key, flow))
	}
}

// wantHalves compares how many halves there are, whatever their backends.
func (tr *trial) wantHalves(flows, embryos int) {
	tr.Helper()
	for _, table := range []struct {
		table maps.FlowTable
		want  int
	}{{tr.Maps.FlowTable(), flows}, {tr.Maps.EmbryoTable(), embryos}} {
		ipv4, ipv6, err := table.table.Count()
		tr.must(err)
		if ipv4+ipv6 != table.want {
			tr.Errorf("there are %d halves, not %d", ipv4+ipv6, table.want)
		}
	}
}

// replaceBackend gives the index of an established flow's backend to another one, by its generation.
func (tr *trial) replaceBackend(in Frame, by uint32) {
	tr.Helper()
	flow, err := tr.Maps.FlowTable().Lookup(flowKeyOf(flowID{tuple{in.From, in.To}, 0, uint8(tr.protocol)}))
	tr.must(err)
	var backend maps.Backend
	tr.must(tr.Maps.Backends.Lookup(flow.Backend, &backend))
	backend.Generation += by
	tr.must(tr.Maps.Backends.Put(flow.Backend, &backend))
}

// A backend that refuses the connection is not asked again: the next SYN may go elsewhere.
func TestSYNAfterRefusal(t *testing.T) {
	forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		in, translated := tr.toLocal()
		refusal := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		refusal.TCP.RST = true
		tr.expectOf(NodeEgress, "eth0", refusal, Pass, refusal.translated(in.To, in.From))
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
		tr.expectCounters(maps.PacketCounters{FlowNew: 2})
	})
}

// An answer of a local backend that comes in from outside is somebody else's packet.
func TestAnswerOfLocalBackendFromOutside(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		_, translated := tr.toLocal()
		tr.expectUntouched("eth0", translated.answer(gatewayMAC(), tr.Device("eth0").MAC).Bytes())
	})
}

// Both directions are accounted to the service, in packets and bytes of IP.
func TestTrafficOfService(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		in, translated := tr.toLocal()
		tr.establish(in, translated)
		length := func(f Frame) uint64 { return uint64(len(f.Bytes()) - 14) }
		want := maps.Traffic{
			Flows: 1, Packets: 2, Bytes: length(in) + length(in.later()), ReplyPackets: 1,
			ReplyBytes: length(translated.answer(gatewayMAC(), gatewayMAC())),
		}
		traffic, err := tr.Traffic()
		if err != nil {
			tr.Fatal(err)
		}
		if got := traffic[tr.service("web").ID]; got != want {
			tr.Errorf("traffic is %+v, not %+v", got, want)
		}
	})
}

// A SYN on a connection that its client has ended opens a new flow also where eviction took its reverse half: nothing
// is rebuilt of what is over (rule X10).
func TestX10SYNOnClosedFlowWithoutReverse(t *testing.T) {
	forEach(t, cases{protocols: []compile.Protocol{compile.TCP}}, func(tr *trial) {
		in, translated := tr.toLocal()
		last := in.later()
		last.TCP.RST = true
		tr.run("eth0", last.Bytes())
		tr.evict(flowID{tuple{translated.To, translated.From}, 0, uint8(tr.protocol)})
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
		tr.expectCounters(maps.PacketCounters{FlowNew: 2})
	})
}
