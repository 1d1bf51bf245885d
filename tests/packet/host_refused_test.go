package packet

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// expectHostError wants this host to be told by an ICMP error of the VIP's: the stack takes none from its own addresses.
func (tr *trial) expectHostError(out Frame, type4, type6 uint16, mtu uint32) {
	tr.Helper()
	result := tr.run("eth0", out.Bytes())
	tr.compare(result, Redirect, tr.errorPacket(out, out.To.Addr(), type4, type6, mtu, min(tr.ipLength(out)&^3, mostQuoted)))
}

// This host is refused at once where there is no endpoint at all (rule P06).
func TestP06HostIsRefused(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.serveNothing()
		out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort))
		if tr.protocol == compile.UDP {
			tr.expectHostError(out, 0x0303, 0x0104, 0)
			tr.expectCounters(maps.PacketCounters{RejectUnreachable: 1})
			return
		}
		result := tr.run("eth0", out.Bytes())
		tr.compareUnpadded(result, Redirect, resetOf(out, 0, 1001+uint32(len(out.Payload)), true))
		tr.expectCounters(tr.resets(1))
	})
}

// What this host sends to a VIP, and cannot reach an endpoint, never leaves: each reason has its counter.
func TestHostPacketIsDropped(t *testing.T) {
	reasons := map[string]struct {
		service func(tr *trial) compile.Service
		change  func(tr *trial, out *Frame)
		counted maps.PacketCounters
	}{
		"no endpoint of the policy (P05)": {
			service: func(tr *trial) compile.Service { return tr.service("web") },
			counted: maps.PacketCounters{DropNoLocalEndpoint: 1},
		},
		"outside of the source ranges (L04)": {
			service: func(tr *trial) compile.Service { return tr.restricted("203.0.113.0/24", "2001:db8:c::/64") },
			change:  func(tr *trial, out *Frame) { out.To = tr.at(tr.LoadBalancer, servicePort) },
			counted: maps.PacketCounters{DropSourceDenied: 1},
		},
		"a route that refuses": {
			service: func(tr *trial) compile.Service { return tr.service("web", tr.remote(tr.Blackhole)) },
			counted: maps.PacketCounters{DropNoRoute: 1},
		},
		"no route": {
			service: func(tr *trial) compile.Service { return tr.service("web", tr.remote(tr.Unrouted)) },
			counted: maps.PacketCounters{DropNoRoute: 1},
		},
		"no address on the way": {
			service: func(tr *trial) compile.Service { return tr.service("web", tr.remote(tr.RemoteThird)) },
			counted: maps.PacketCounters{DropSnatNoAddress: 1},
		},
		"a VLAN tag": {
			service: func(tr *trial) compile.Service { return tr.service("web", tr.remote(tr.Remote)) },
			change:  func(_ *trial, out *Frame) { out.VLANs = []uint16{10} },
			counted: maps.PacketCounters{DropHostUntranslated: 1},
		},
		"nobody's source": {
			service: func(tr *trial) compile.Service { return tr.service("web", tr.remote(tr.Remote)) },
			change:  func(tr *trial, out *Frame) { out.From = tr.at(pair("127.0.0.1", "::1"), clientPort) },
			counted: maps.PacketCounters{DropHostUntranslated: 1},
		},
	}
	for name, reason := range reasons {
		t.Run(name, func(t *testing.T) {
			forEach(t, hostCases(), func(tr *trial) {
				tr.serve(reason.service(tr))
				out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort))
				if reason.change != nil {
					reason.change(tr, &out)
				}
				tr.expectDrop("eth0", out)
				tr.expectCounters(reason.counted)
				tr.wantTables(0, 0)
			})
		})
	}
}

// A connection of this host that no flow is known of, as one from before the agent, ends by a reset; a reset itself has
// nobody to go to.
func TestHostMidStream(t *testing.T) {
	c := hostCases()
	c.protocols = []compile.Protocol{compile.TCP}
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort)).later()
		tr.compareUnpadded(tr.run("eth0", out.Bytes()), Redirect, resetOf(out, 5001, 0, false))
		out.TCP = TCPFields{RST: true, Sequence: 1001}
		tr.expectDrop("eth0", out)
		tr.expectCounters(maps.PacketCounters{RejectTcpReset: 1, DropHostUntranslated: 1})
		tr.wantTables(0, 0)
	})
}

// This host is told what is too long for the way to the backend, and opens no flow by that.
func TestHostPacketTooBig(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteFourth)))
		out := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort))
		out.Payload = make([]byte, 1400)
		tr.expectHostError(out, 0x0304, 0x0200, 1300)
		tr.expectCounters(maps.PacketCounters{IcmpTooBig: 1})
		tr.wantTables(0, 0)
	})
}

// A flow of this host goes on when its Service is gone (rule X01), and is refused nothing but its way.
func TestX01HostFlowOutlivesService(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		out, translated := tr.hostOpens(tr.remote(tr.Remote), tr.NodeEth0)
		tr.runProgram(NodeIngress, "eth0", translated.answer(gatewayMAC(), tr.Device("eth0").MAC).Bytes())
		tr.run("eth0", out.later().Bytes())
		tr.serve()
		later := out.later()
		tr.expect("eth0", later, Redirect, later.translated(translated.From, translated.To))
	})
}

// An address of this host in a packet from outside makes it no packet of this host.
func TestHostFlowFromOutside(t *testing.T) {
	forEach(t, hostCases(), func(tr *trial) {
		out, _ := tr.hostOpens(tr.remote(tr.Remote), tr.NodeEth0)
		spoofed := out
		spoofed.SourceMAC, spoofed.DestinationMAC = gatewayMAC(), tr.Device("eth0").MAC
		tr.expectOf(NodeIngress, "eth0", spoofed, Pass, spoofed)
	})
}
