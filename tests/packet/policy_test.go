package packet

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/xfrm"
	"github.com/weir-lb/weir/maps"
)

const policyMark = 1 << 14

// concerned are the trials in which a policy of XFRM comes to be about a backend elsewhere, or the client. The model knows
// of none.
func concerned(t *testing.T, program Program, protocols []compile.Protocol, test func(tr *trial, policy func(Pair))) {
	settings := DefaultSettings()
	settings.Constants.PolicyMark = policyMark
	forEach(t, cases{programs: []Program{program}, protocols: protocols, settings: &settings}, func(tr *trial) {
		defer func() {
			_, err := xfrm.Write(tr.Maps, nil)
			tr.must(err)
			tr.begin()
		}()
		test(tr, func(about Pair) {
			address := about.Of(tr.family)
			_, err := xfrm.Write(tr.Maps, []netip.Prefix{netip.PrefixFrom(address, address.BitLen())})
			tr.must(err)
		})
	})
}

// What begins a flow that a policy may concern is not redirected: it is translated, marked for the rule that gives it the
// node's address, and left to the stack, as often as it comes. Local backends' clients keep their address.
func TestPolicyLeavesToStack(t *testing.T) {
	concerned(t, NodeIngress, nil, func(tr *trial, policy func(Pair)) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		for n, about := range []Pair{tr.Remote, tr.Client} {
			policy(about)
			in := tr.frame("eth0", tr.at(tr.Client, uint16(clientPort+n)), tr.at(tr.LoadBalancer, servicePort))
			for range 2 {
				tr.compare(tr.expectUnmodelled("eth0", in, Pass), Pass, in.translated(in.From, tr.at(tr.Remote, targetPort)).Bytes())
				tr.wantMark("a first packet", policyMark)
			}
		}
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort+2), tr.at(tr.LoadBalancer, servicePort))
		tr.expectUnmodelled("eth0", in, Pass)
		tr.wantMark("a packet to a local backend", 0)
		in = tr.frame("eth0", tr.at(tr.OtherClient, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.serve(tr.service("web", tr.remote(tr.OtherRemote)))
		tr.expectUnmodelled("eth0", in, Redirect)
	})
}

// XDP has no marks, and leaves it to tc, as it came.
func TestPolicyXDPPassesUp(t *testing.T) {
	concerned(t, NodeXDP, nil, func(tr *trial, policy func(Pair)) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expectUnmodelled("eth0", in, Transmit)
		policy(tr.Remote)
		other := in
		other.From = tr.at(tr.Client, clientPort+1)
		tr.compare(tr.expectUnmodelled("eth0", other, Pass), Pass, other.Bytes())
	})
}

// A flow that is redirected ends when a policy comes to concern it: the client of a connection is told, and its next
// datagram opens another flow, which goes by the stack.
func TestPolicyEndsFlow(t *testing.T) {
	concerned(t, NodeIngress, withSockets(), func(tr *trial, policy func(Pair)) {
		in, translated := tr.toRemote()
		policy(tr.Remote)
		answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.expectUnmodelled("eth0", answer, Drop)
		later, marked := in.later(), uint32(policyMark)
		if tr.protocol == compile.TCP {
			tr.compareUnpadded(tr.expectUnmodelled("eth0", later, Redirect), Redirect, resetOf(later, later.TCP.Acknowledged, 0, false))
			return
		}
		tr.expectUnmodelled("eth0", later, Drop)
		tr.expectUnmodelled("eth0", later, Pass)
		tr.wantMark("the next datagram", marked)
	})
}

// What this host sends to a VIP by itself cannot go by the stack any more: it is dropped.
func TestPolicyDropsHostPacket(t *testing.T) {
	concerned(t, NodeEgress, withSockets(), func(tr *trial, policy func(Pair)) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		policy(tr.Remote)
		tr.expectUnmodelled("eth0", tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort)), Drop)
		counters, err := tr.Counters()
		tr.must(err)
		if counters != (maps.PacketCounters{FlowNew: 1, DropPolicy: 1}) {
			tr.Errorf("counters are %+v", counters)
		}
	})
}
