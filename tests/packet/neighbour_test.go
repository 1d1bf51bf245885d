package packet

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weir-lb/weir/controlplane/compile"
)

// forgetNeighbour takes out the MAC of a neighbour. learn puts it back: what waits for it goes then.
func (tr *trial) forgetNeighbour(device string, host Pair, mac net.HardwareAddr) (learn func()) {
	tr.Helper()
	known := &netlink.Neigh{
		LinkIndex: tr.Device(device).Index, IP: host.Of(tr.family).AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
	}
	tr.must(netlink.NeighDel(known))
	learn = func() { tr.must(netlink.NeighSet(known)) }
	tr.Cleanup(learn)
	return learn
}

// waitAsked waits until somebody wants to know the MAC of a neighbour.
func (tr *trial) waitAsked(device string, host Pair) {
	tr.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		found, err := netlink.NeighList(tr.Device(device).Index, netlink.FAMILY_ALL)
		tr.must(err)
		asked := func(n netlink.Neigh) bool {
			return n.IP.Equal(host.Of(tr.family).AsSlice()) && n.State == netlink.NUD_INCOMPLETE
		}
		if slices.ContainsFunc(found, asked) {
			return
		}
		if time.Now().After(deadline) {
			tr.Fatalf("nobody asks for %v on %s", host.Of(tr.family), device)
		}
	}
}

// An answer that leaves by another device than it was routed to may have to wait for its neighbour there, and then goes
// to that one.
func TestWireAnswerWaitsForNeighbour(t *testing.T) {
	onWire(t, cases{families: []compile.Family{compile.IPv4}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.attachNode("eth0", "eth1")
		client, pod, in, answer := tr.toPodOnWire(tr.SecondClient)
		learn := tr.forgetNeighbour("eth0", tr.Gateway, gatewayMAC())
		tr.send(pod, answer)
		tr.waitAsked("eth0", tr.Gateway)
		learn()
		tr.wantOnWire(client, tr.routed(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
	})
}
