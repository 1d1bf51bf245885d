package packet

import (
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// narrowPiece is how much of a datagram goes in a packet of 1300 bytes.
const narrowPiece = 1280

// narrowAddress is the node's on the link of 1300 bytes.
func narrowAddress() Pair { return pair("192.0.3.1", "2001:db8:3::1") }

// expectPieces waits for packets on a wire, in any order.
func (tr *trial) expectPieces(send func(), device string, pieces [][]byte) {
	tr.Helper()
	var wires []*Wire
	for range pieces {
		wires = append(wires, tr.wire(device, false))
	}
	send()
	for i, piece := range pieces {
		if err := wires[i].Expect(piece, patience); err != nil {
			tr.Fatal(err)
		}
	}
}

func cutCases(protocols ...compile.Protocol) cases {
	return cases{families: []compile.Family{compile.IPv4}, protocols: protocols}
}

// A packet that is too long for its way is cut where its sender allows that, also the first of a flow (RFC 1812,
// 4.2.2.7).
func TestPacketIsCut(t *testing.T) {
	onWire(t, cutCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		tr.attachNode("eth0", "eth3")
		client := tr.wire("eth0", false)
		in := tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort)).large(1400)
		in.MayBeCut = true
		for range 2 {
			translated := tr.routed(in.translated(tr.at(narrowAddress(), 61500), tr.at(tr.RemoteFourth, targetPort)), "eth3", neighbourMAC())
			tr.expectPieces(func() { tr.send(client, in) }, "eth3", translated.fragments(0x1234, narrowPiece))
		}
		counters, err := tr.Counters()
		tr.must(err)
		want := maps.PacketCounters{FlowNew: 1, PacketCut: 2}
		if tr.protocol == compile.SCTP {
			want.PassFragment = 4 // the pieces, where they leave: those of others are known there
		}
		if counters != want {
			tr.Errorf("counters are %+v", counters)
		}
	})
}

// An answer is cut on its way to a client behind a narrow link.
func TestAnswerIsCut(t *testing.T) {
	onWire(t, cutCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteSecond)))
		tr.attachNode("eth1", "eth3")
		client, backend := tr.wire("eth3", false), tr.wire("eth1", false)
		in := tr.frame("eth3", tr.at(tr.RemoteFourth, 61500), tr.at(tr.LoadBalancer, servicePort))
		in.SourceMAC = neighbourMAC()
		tr.send(client, in)
		translated := tr.routed(in.translated(tr.at(tr.NodeEth1, 61500), tr.at(tr.RemoteSecond, targetPort)), "eth1", secondGatewayMAC())
		tr.wantOnWire(backend, translated)

		answer := translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC).large(1400)
		answer.MayBeCut = true
		back := tr.routed(answer.translated(in.To, in.From), "eth3", neighbourMAC())
		tr.expectPieces(func() { tr.send(backend, answer) }, "eth3", back.fragments(0x1234, narrowPiece))
	})
}

// Into as many pieces as it takes: a jumbo frame.
func TestLongPacketIsCut(t *testing.T) {
	onWire(t, cutCases(compile.UDP), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		tr.attachNode("big0", "eth3")
		client := tr.wire("big0", false)
		in := tr.frame("big0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort)).large(8900)
		in.MayBeCut = true
		translated := tr.routed(in.translated(tr.at(narrowAddress(), 61500), tr.at(tr.RemoteFourth, targetPort)), "eth3", neighbourMAC())
		tr.expectPieces(func() { tr.send(client, in) }, "eth3", translated.fragments(0x1234, narrowPiece))
	})
}

// What cannot be cut is answered: with IP options, with a checksum that is left to the device.
func TestPacketIsNotCut(t *testing.T) {
	changes := map[string]func(f *Frame){
		"forbidden":  func(*Frame) {},
		"IP options": func(f *Frame) { f.MayBeCut, f.Options = true, []byte{1, 1, 1, 1} },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			c := cutCases()
			c.programs = []Program{NodeIngress}
			forEach(t, c, func(tr *trial) {
				tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).large(1400)
				change(&in)
				if result := tr.run("eth0", in.Bytes()); result.Verdict != Redirect {
					tr.Errorf("the verdict is %s", result.Verdict)
				}
				tr.expectCounters(maps.PacketCounters{IcmpTooBig: 1})
			})
		})
	}
	t.Run("partial checksum", func(t *testing.T) {
		onWire(t, cutCases(withSockets()...), func(tr *trial) {
			tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
			tr.attachNode("eth0", "eth3")
			client := tr.wire("eth0", true)
			in := tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort)).large(1400)
			in.MayBeCut = true
			tr.must(client.SendAs(tr.partial(in)))
			for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
				counters, err := tr.Counters()
				tr.must(err)
				if counters.IcmpTooBig == 1 && counters.PacketCut == 0 {
					return
				}
				if time.Now().After(deadline) {
					tr.Fatalf("counters are %+v", counters)
				}
			}
		})
	})
}

// A packet of an established flow is accounted whole, and then gone: its pieces are others.
func TestPacketOfFlowIsCut(t *testing.T) {
	c := cutCases()
	c.programs = []Program{NodeIngress}
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.run("eth0", in.Bytes())
		later := in.later().large(1400)
		later.MayBeCut = true
		if result := tr.run("eth0", later.Bytes()); result.Verdict != Drop {
			tr.Errorf("the verdict is %s", result.Verdict)
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, PacketCut: 1})
	})
}

// So is a fragment; its pieces are fragments of the same datagram.
func TestX05FragmentIsCut(t *testing.T) {
	onWire(t, cutCases(compile.UDP), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		tr.attachNode("eth0", "eth3")
		client := tr.wire("eth0", false)
		in := tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort)).large(3500)
		translated := tr.routed(in.translated(tr.at(narrowAddress(), 61500), tr.at(tr.RemoteFourth, targetPort)), "eth3", neighbourMAC())
		tr.expectPieces(func() {
			for _, fragment := range in.fragments(7, 1400) {
				tr.must(client.Send(fragment))
			}
		}, "eth3", translated.cutAt(7, []int{narrowPiece, 1400, 1400 + narrowPiece, 2800}))
	})
}
