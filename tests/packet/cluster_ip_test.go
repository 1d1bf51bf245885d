package packet

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// unknownPort is one that no service of these tests has.
const unknownPort = 4711

// reserving serves a service, and says what becomes of packets that no frontend is for.
func (tr *trial) reserving() {
	tr.Helper()
	tr.serve(tr.service("web", tr.local(tr.OtherPod)))
	if err := reserve(tr.World, tr.model, clusterRanges()); err != nil {
		tr.Fatal(err)
	}
}

// An unknown port of a ClusterIP is rejected as one without endpoints is (rule C05).
func TestC05UnknownPortIsRejected(t *testing.T) {
	forEach(t, accessCases(), func(tr *trial) {
		tr.reserving()
		device, in := tr.ask(tr.at(tr.ClusterIP, unknownPort))
		switch {
		case tr.program.XDP():
			tr.expectUntouched(device, in.Bytes())
			tr.expectCounters(maps.PacketCounters{XdpPassedUp: 1})
		case tr.protocol != compile.UDP:
			in.Payload = nil
			tr.compareUnpadded(tr.run(device, in.Bytes()), Redirect, resetOf(in, 0, 1001, true))
			tr.expectCounters(tr.resets(1))
		default:
			quoted := min(tr.ipLength(in), 508) &^ 3
			tr.compare(tr.run(device, in.Bytes()), Redirect, tr.errorPacket(in, in.To.Addr(), 0x0303, 0x0104, 0, quoted))
			tr.expectCounters(maps.PacketCounters{RejectUnreachable: 1})
		}
		tr.wantTables(0, 0)
	})
}

// An address of a ServiceCIDR that no Service has is nowhere (rule C05).
func TestC05UnallocatedIsDropped(t *testing.T) {
	forEach(t, accessCases(), func(tr *trial) {
		tr.reserving()
		for _, port := range []uint16{servicePort, unknownPort, 61500} {
			device, in := tr.ask(tr.at(tr.NobodysIP, port))
			tr.expectDrop(device, in)
		}
		tr.expectCounters(maps.PacketCounters{DropUnallocated: 3})
		tr.wantTables(0, 0)
	})
}

// Known ports are served, whatever range the address is in; nobody looks further.
func TestC05KnownPortIsServed(t *testing.T) {
	forEach(t, accessCases(), func(tr *trial) {
		tr.reserving()
		device, in := tr.ask(tr.at(tr.ClusterIP, servicePort))
		tr.expect(device, in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
	})
}

// Left alone are external addresses (rule L09), the node's own, whatever range they are in, and all others.
func TestC05OthersAreLeftAlone(t *testing.T) {
	others := map[string]func(Hosts) Pair{
		"external in a range": func(h Hosts) Pair { return h.LeftIP },
		"load balancer":       func(h Hosts) Pair { return h.LoadBalancer },
		"external":            func(h Hosts) Pair { return h.External },
		"node's in a range":   func(h Hosts) Pair { return h.NodeEth1 },
		"any":                 func(h Hosts) Pair { return h.Remote },
		"before the bounds":   func(Hosts) Pair { return pair("10.95.255.255", "fd00:95::ffff") },
		"behind the bounds":   func(Hosts) Pair { return pair("198.51.101.0", "fd00:96::1:0") },
	}
	for name, of := range others {
		t.Run(name, func(t *testing.T) {
			forEach(t, accessCases(), func(tr *trial) {
				tr.reserving()
				device, in := tr.ask(tr.at(of(tr.Hosts), unknownPort))
				tr.expectUntouched(device, in.Bytes())
				tr.expectCounters(maps.PacketCounters{})
			})
		})
	}
}

// TCP in the middle of a connection may be known to somebody else.
func TestC05MidStreamIsLeftAlone(t *testing.T) {
	c := accessCases()
	c.protocols = []compile.Protocol{compile.TCP}
	forEach(t, c, func(tr *trial) {
		tr.reserving()
		for _, to := range []netip.AddrPort{tr.at(tr.ClusterIP, unknownPort), tr.at(tr.NobodysIP, servicePort)} {
			device, in := tr.ask(to)
			tr.expectUntouched(device, in.later().Bytes())
		}
		tr.expectCounters(maps.PacketCounters{})
	})
}

// A flow that there is goes on when its Service goes (rule X01); a new one is refused then.
func TestC05FlowsOutliveTheirService(t *testing.T) {
	forEach(t, accessCases(), func(tr *trial) {
		tr.reserving()
		device, in := tr.ask(tr.at(tr.ClusterIP, servicePort))
		translated := in.translated(in.From, tr.at(tr.OtherPod, targetPort))
		tr.expect(device, in, Pass, translated)
		tr.serve()
		prefix := netip.PrefixFrom(in.To.Addr(), in.To.Addr().BitLen())
		reserved := clusterRanges()
		delete(reserved, prefix)
		if err := reserve(tr.World, tr.model, reserved); err != nil {
			tr.Fatal(err)
		}
		tr.expect(device, in, Pass, translated)
		in.From = netip.AddrPortFrom(in.From.Addr(), clientPort+1)
		tr.expectDrop(device, in)
	})
}
