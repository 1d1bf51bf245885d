package packet

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

func tcpAtNode() cases { return cases{protocols: []compile.Protocol{compile.TCP}} }

func tcpOfPods() cases {
	return cases{programs: []Program{PodIngress}, protocols: []compile.Protocol{compile.TCP}}
}

// aReset returns a packet by which a client ends its connection.
func aReset(in Frame) Frame {
	in.TCP, in.SCTP = TCPFields{RST: true, Sequence: 1001}, SCTPFields{Chunk: sctpAbort, Tag: serverTag}
	return in
}

// expectWithoutFlow compares the counters with those of packets that met no flow. XDP leaves all of them to tc.
func (tr *trial) expectWithoutFlow(resets uint64, others maps.PacketCounters) {
	tr.Helper()
	if tr.program.XDP() {
		others.XdpPassedUp = resets
	} else {
		others.RejectTcpReset = resets
	}
	tr.expectCounters(others)
}

// A TCP packet of no flow goes on to the backend that the table of every node has for it, where that keeps the client's
// address: its state is lost, or it has come by another node before. Toward a backend elsewhere its source port is lost.
func TestMidStreamGoesByTheTable(t *testing.T) {
	forEach(t, tcpAtNode(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).later()
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
		end := aReset(tr.frame("eth0", tr.at(tr.OtherClient, clientPort), in.To))
		tr.expect("eth0", end, Pass, end.translated(end.From, tr.at(tr.Pod, targetPort)))
		tr.expectCounters(maps.PacketCounters{FlowNew: 2})
	})
	forEach(t, tcpAtNode(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		tr.expectReset("eth0", tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.ClusterIP, servicePort)).later())
		tr.expectWithoutFlow(1, maps.PacketCounters{})
		tr.wantTables(0, 0)
	})
}

// A pod's packet too, where the Service has it so, but for a pod that has reached itself.
func TestMidStreamOfAPodGoesByTheTable(t *testing.T) {
	forEach(t, tcpOfPods(), func(tr *trial) {
		web := tr.service("web", tr.remote(tr.Remote))
		web.InsideAlgorithm = maps.AlgorithmMaglev
		tr.serve(web)
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort)).later()
		tr.expect("pod0", in, Pass, in.translated(in.From, tr.at(tr.Remote, targetPort)))
		web = tr.service("web", tr.local(tr.Pod))
		web.InsideAlgorithm = maps.AlgorithmMaglev
		tr.serve(web)
		tr.expectReset("pod0", tr.podFrame("pod0", tr.at(tr.Pod, clientPort+1), tr.at(tr.ClusterIP, servicePort)).later())
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, RejectTcpReset: 1})
	})
}

// Where chance has picked, nobody knows whom.
func TestMidStreamOfChanceIsReset(t *testing.T) {
	forEach(t, tcpAtNode(), func(tr *trial) {
		web := tr.service("web", tr.local(tr.Pod))
		web.OutsideAlgorithm = maps.AlgorithmRandom
		tr.serve(web)
		tr.expectReset("eth0", tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).later())
		tr.expectWithoutFlow(1, maps.PacketCounters{})
	})
	forEach(t, tcpOfPods(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		tr.expectReset("pod0", in.later())
		tr.expectDrop("pod0", aReset(in))
		tr.expectWithoutFlow(1, maps.PacketCounters{})
		tr.wantTables(0, 0)
	})
}

// At an address of the node's own it may be a connection of the node itself.
func TestMidStreamToTheNodeIsLeftAlone(t *testing.T) {
	forEach(t, tcpAtNode(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.expectUntouched("eth0", tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.NodeEth0, nodePort)).later().Bytes())
		tr.expectCounters(maps.PacketCounters{PassWithoutFlow: 1})
	})
	forEach(t, tcpOfPods(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		tr.expectUntouched("pod0", tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.NodeEth1, nodePort)).later().Bytes())
		tr.expectCounters(maps.PacketCounters{PassWithoutFlow: 1})
	})
}

// Until the agent has recorded the connections that others translate, a packet in the middle of one may be of those.
func TestMidStreamIsLeftAloneAtFirst(t *testing.T) {
	at := func(device string, from Pair) func(tr *trial) {
		return func(tr *trial) {
			if err := tr.KnowConnections(false); err != nil {
				tr.Fatal(err)
			}
			tr.model.unknown = true
			tr.serve(tr.service("web", tr.local(tr.OtherPod)))
			in := tr.podFrame(device, tr.at(from, clientPort), tr.at(tr.ClusterIP, servicePort))
			tr.expectUntouched(device, in.later().Bytes())
			tr.expectCounters(maps.PacketCounters{PassWithoutFlow: 1})
			tr.expect(device, in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
		}
	}
	forEach(t, tcpAtNode(), at("eth0", NewHosts().Client))
	forEach(t, tcpOfPods(), at("pod0", NewHosts().Pod))
}

// A packet of a connection that somebody else translates, as the agent has found it in conntrack, goes on untouched at
// every edge, until the client connects anew; what ends with its backend is reset.
func TestForeignFlowFromBefore(t *testing.T) {
	at := func(device string, from, to Pair, port uint16) func(tr *trial) {
		return func(tr *trial) {
			tr.serve(tr.service("web", tr.local(tr.OtherPod)))
			in := tr.podFrame(device, tr.at(from, clientPort), tr.at(to, port))
			id := flowID{tuple{in.From, in.To}, maps.EdgeIDForeign, uint8(tr.protocol)}
			if err := tr.model.inherit(tr.World, id); err != nil {
				tr.Fatal(err)
			}
			tr.expectUntouched(device, in.later().Bytes())
			tr.expectUntouched(device, in.later().Bytes())
			tr.expectCounters(maps.PacketCounters{PassForeign: 2})
			tr.wantTables(1, 0)
			if tr.protocol == compile.UDP {
				return
			}
			tr.expectUntouched(device, aReset(in).Bytes())
			if err := tr.model.end(tr.World, id); err != nil {
				tr.Fatal(err)
			}
			tr.expectReset(device, in.later())
			tr.expect(device, in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
			tr.wantTables(1, 2)
		}
	}
	hosts := NewHosts()
	forEach(t, cases{}, at("eth0", hosts.Client, hosts.LoadBalancer, servicePort))
	forEach(t, cases{}, at("eth0", hosts.Client, hosts.NodeEth0, nodePort))
	forEach(t, podCases(), at("pod0", hosts.Pod, hosts.ClusterIP, servicePort))
}

// Of a foreign flow is its tuple alone: another client, another frontend and another protocol are not.
func TestForeignFlowFromBeforeIsOneTuple(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		client, frontend := tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)
		for _, id := range []flowID{
			{tuple{tr.at(tr.OtherClient, clientPort), frontend}, maps.EdgeIDForeign, uint8(tr.protocol)},
			{tuple{tr.at(tr.Client, clientPort+1), frontend}, maps.EdgeIDForeign, uint8(tr.protocol)},
			{tuple{client, tr.at(tr.ClusterIP, servicePort)}, maps.EdgeIDForeign, uint8(tr.protocol)},
			{tuple{client, frontend}, maps.EdgeIDForeign, uint8(compile.TCP + compile.UDP - tr.protocol)},
		} {
			if err := tr.model.inherit(tr.World, id); err != nil {
				tr.Fatal(err)
			}
		}
		in := tr.frame("eth0", client, frontend)
		tr.expect("eth0", in, Pass, in.translated(in.From, netip.AddrPortFrom(tr.Pod.Of(tr.family), targetPort)))
	})
}
