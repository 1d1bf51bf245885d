package packet

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// podFrame returns a pod's first packet, as it arrives by the host's side of its veth.
func (tr *trial) podFrame(device string, from, to netip.AddrPort) Frame {
	in := tr.frame(device, from, to)
	in.SourceMAC = podMAC()
	return in
}

func podCases() cases { return cases{programs: []Program{PodIngress}} }

// A pod's packet to a frontend gets the backend's address and goes on through the stack; the pod's own address
// and the TTL stay (rules C01, C06).
func TestC06PodToFrontend(t *testing.T) {
	backends := map[string]func(tr *trial) compile.Backend{
		"local":  func(tr *trial) compile.Backend { return tr.local(tr.OtherPod) },
		"remote": func(tr *trial) compile.Backend { return tr.remote(tr.Remote) },
	}
	frontends := map[string]func(tr *trial) netip.AddrPort{
		"cluster IP":    func(tr *trial) netip.AddrPort { return tr.at(tr.ClusterIP, servicePort) },
		"load balancer": func(tr *trial) netip.AddrPort { return tr.at(tr.LoadBalancer, servicePort) },
		"node port":     func(tr *trial) netip.AddrPort { return tr.at(tr.NodeEth1, nodePort) },
	}
	for backendName, backend := range backends {
		for frontendName, frontend := range frontends {
			t.Run(backendName+"/"+frontendName, func(t *testing.T) {
				forEach(t, podCases(), func(tr *trial) {
					tr.serve(tr.service("web", backend(tr)))
					in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), frontend(tr))
					tr.expect("pod0", in, Pass, in.translated(in.From, backend(tr).Address))
					tr.expectCounters(maps.PacketCounters{FlowNew: 1})
				})
			})
		}
	}
}

// The answer gets the frontend's address back where it re-enters the pod.
func TestAnswerToPod(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		translated := in.translated(in.From, tr.at(tr.Remote, targetPort))
		tr.expect("pod0", in, Pass, translated)
		answer := translated.answer(tr.Device("pod0").MAC, podMAC())
		tr.expectOf(PodEgress, "pod0", answer, Pass, answer.translated(in.To, in.From))
		later := in.later()
		tr.expect("pod0", later, Pass, later.translated(later.From, translated.To))
		tr.wantTables(2, 0)
		tr.expectOf(PodEgress, "pod0", answer, Pass, answer.translated(in.To, in.From))
	})
}

// A pod may pick any of the backends, and in many tries picks all (rule C07).
func TestC07RandomPick(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod), tr.remote(tr.Remote), tr.remote(tr.OtherRemote)))
		picked := make(map[netip.AddrPort]int)
		for port := uint16(clientPort); port < clientPort+300; port++ {
			in := tr.podFrame("pod0", tr.at(tr.Pod, port), tr.at(tr.ClusterIP, servicePort))
			picked[tr.tupleOf(tr.run("pod0", in.Bytes())).to]++
		}
		for _, backend := range []Pair{tr.OtherPod, tr.Remote, tr.OtherRemote} {
			// 100 are expected; fewer than 50 of 300 happens once in 10^10 runs.
			if times := picked[tr.at(backend, targetPort)]; times < 50 {
				tr.Errorf("%v is picked %d times of 300", backend.Of(tr.family), times)
			}
		}
	})
}

// Two pods that use one tuple do not see each other's flows: neither way.
func TestEdgesAreApart(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		translated := in.translated(in.From, tr.at(tr.Remote, targetPort))
		tr.expect("pod0", in, Pass, translated)

		answer := translated.answer(tr.Device("pod1").MAC, podMAC())
		tr.expectOf(PodEgress, "pod1", answer, Pass, answer)
		answer = translated.answer(tr.Device("eth0").MAC, gatewayMAC())
		tr.expectOf(NodeEgress, "eth0", answer, Pass, answer)
		answer = translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.expectOf(NodeIngress, "eth0", answer, Pass, answer)

		// The other pod pretends to be the first, and gets a flow of its own, to a backend of its own time.
		tr.serve(tr.service("web", tr.remote(tr.OtherRemote)))
		same := tr.podFrame("pod1", in.From, in.To)
		tr.expect("pod1", same, Pass, same.translated(same.From, tr.at(tr.OtherRemote, targetPort)))
		tr.expect("pod0", in, Pass, translated)
		tr.expectCounters(maps.PacketCounters{FlowNew: 2})
	})
}

// A pod that picks itself is sent its own packet back from the node's address, and the answer likewise from
// the frontend's: two hops each, of which the last is ours (rule C04).
func TestC04Hairpin(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		result := tr.run("pod0", in.Bytes())
		port := tr.tupleOf(result).from.Port()
		if port < 61000 {
			tr.Errorf("the source port %d is not of the SNAT range", port)
		}
		want := in.translated(tr.at(tr.PodGateway, port), tr.at(tr.Pod, targetPort))
		want.SourceMAC, want.DestinationMAC, want.TTL = in.DestinationMAC, in.SourceMAC, in.TTL-1
		tr.compare(result, Redirect, want.Bytes())
		// Our own program on the way back into the pod leaves it as it is.
		tr.expectOf(PodEgress, "pod0", want, Pass, want)

		answer := want.answer(podMAC(), tr.Device("pod0").MAC)
		back := answer.translated(in.To, in.From)
		back.SourceMAC, back.DestinationMAC, back.TTL = answer.DestinationMAC, answer.SourceMAC, answer.TTL-1
		tr.expect("pod0", answer, Redirect, back)
		tr.expectOf(PodEgress, "pod0", back, Pass, back)
		tr.run("pod0", in.later().Bytes())
		tr.wantTables(2, 0)
	})
}

// Two connections of one client port to two frontends of a pod itself are told apart.
func TestC04HairpinTwice(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		one := tr.podFrame("pod0", tr.at(tr.Pod, 61500), tr.at(tr.ClusterIP, servicePort))
		two := tr.podFrame("pod0", tr.at(tr.Pod, 61500), tr.at(tr.LoadBalancer, servicePort))
		first, second := tr.tupleOf(tr.run("pod0", one.Bytes())), tr.tupleOf(tr.run("pod0", two.Bytes()))
		if first.from.Port() != 61500 || second.from.Port() == 61500 || second.from.Port() < 61000 {
			tr.Errorf("the source ports are %d and %d", first.from.Port(), second.from.Port())
		}
	})
}

// Where the node has no address on the pod's link, a hairpin is dropped.
func TestC04HairpinWithoutAddress(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.BarePod)))
		tr.expectDrop("pod2", tr.podFrame("pod2", tr.at(tr.BarePod, clientPort), tr.at(tr.ClusterIP, servicePort)))
		tr.expectCounters(maps.PacketCounters{DropNoHairpinAddress: 1})
	})
}

// What a pod sends elsewhere is not ours.
func TestPodToElsewhere(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		for _, to := range []netip.AddrPort{
			tr.at(tr.Remote, targetPort), tr.at(tr.ClusterIP, servicePort+1), tr.at(tr.Client, nodePort),
		} {
			tr.expectUntouched("pod0", tr.podFrame("pod0", tr.at(tr.Pod, clientPort), to).Bytes())
		}
		tr.expectCounters(maps.PacketCounters{})
	})
}

// Inside and outside have tables of their own (rule P07).
func TestP07InsideAndOutsideApart(t *testing.T) {
	forEach(t, podCases(), func(tr *trial) {
		web := tr.service("web", tr.remote(tr.Remote))
		web.Outside = []compile.Backend{tr.local(tr.OtherPod)}
		tr.serve(web)
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expect("pod0", in, Pass, in.translated(in.From, tr.at(tr.Remote, targetPort)))
		in = tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expectOf(NodeXDP, "eth0", in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
	})
}
