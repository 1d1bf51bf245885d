package packet

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// opened runs a client's first packet and returns its tuple behind the program.
func (tr *trial) opened(from, to netip.AddrPort) tuple {
	tr.Helper()
	return tr.tupleOf(tr.run("eth0", tr.frame("eth0", from, to).Bytes()))
}

// A client's own port is kept where it is of the SNAT range and free.
func TestSNATKeepsTheClientsPort(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		for _, port := range []uint16{61000, 62345, 65535} {
			to := tr.opened(tr.at(tr.Client, port), tr.at(tr.LoadBalancer, servicePort))
			if to.from != tr.at(tr.NodeEth0, port) {
				tr.Errorf("port %d becomes %v", port, to.from)
			}
		}
	})
}

// A client's port outside the range is not kept: the host's own connections have those.
func TestSNATPortIsOfTheRange(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		for _, port := range []uint16{1, 1024, 40000, 60999} {
			to := tr.opened(tr.at(tr.Client, port), tr.at(tr.LoadBalancer, servicePort))
			if to.from.Addr() != tr.NodeEth0.Of(tr.family) || to.from.Port() < 61000 {
				tr.Errorf("port %d becomes %v", port, to.from)
			}
		}
	})
}

// Two clients with one source port to one backend get different ports; toward different backends they may
// have the same.
func TestSNATPortsCollide(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		vip := tr.at(tr.LoadBalancer, servicePort)
		first := tr.opened(tr.at(tr.Client, 61500), vip)
		second := tr.opened(tr.at(tr.OtherClient, 61500), vip)
		if first.from.Port() != 61500 || second.from.Port() == 61500 || second.from.Port() < 61000 {
			tr.Errorf("the clients got %v and %v", first.from, second.from)
		}
		tr.serve(tr.service("web", tr.remote(tr.OtherRemote)))
		other := tr.opened(tr.at(pair("203.0.113.9", "2001:db8:c::9"), 61500), vip)
		if other.from.Port() != 61500 {
			tr.Errorf("toward another backend a client got %v", other.from)
		}
	})
}

// One client port that is used to two frontends of a backend makes two flows, also where the client's address
// is kept: the second one's port is another.
func TestOnePortToTwoFrontends(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		client := tr.at(tr.Client, clientPort)
		first := tr.opened(client, tr.at(tr.LoadBalancer, servicePort))
		second := tr.opened(client, tr.at(tr.External, servicePort))
		if first.from != client || second.from.Addr() != client.Addr() || second.from.Port() < 61000 {
			tr.Fatalf("the backend sees %v and %v", first.from, second.from)
		}
		for vip, to := range map[Pair]tuple{tr.LoadBalancer: first, tr.External: second} {
			answer := tr.frame("eth0", to.to, to.from).later()
			want := answer.translated(tr.at(vip, servicePort), client)
			tr.expectOf(NodeEgress, "eth0", answer, Pass, want)
		}
	})
}

// narrow are settings with few ports.
func narrow(ports uint16) *Settings {
	settings := DefaultSettings()
	settings.Constants.SNATPortMin, settings.Constants.SNATPortMax = 61000, 61000+ports-1
	return &settings
}

// agreed opens a flow and has both sides agree to it. It returns the port it has.
func (tr *trial) agreed(in Frame) uint16 {
	tr.Helper()
	to := tr.tupleOf(tr.run("eth0", in.Bytes()))
	answer := in.translated(to.from, to.to).answer(gatewayMAC(), tr.Device("eth0").MAC)
	tr.run("eth0", answer.Bytes())
	tr.run("eth0", in.later().Bytes())
	return to.from.Port()
}

// When all ports toward a backend are taken a new flow is refused and counted, the others go on, and
// another backend can still be reached.
func TestSNATPortsExhausted(t *testing.T) {
	forEach(t, cases{settings: narrow(4)}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		vip := tr.at(tr.LoadBalancer, servicePort)
		taken := make(map[uint16]Frame)
		for port := uint16(clientPort); port < clientPort+4; port++ {
			in := tr.frame("eth0", tr.at(tr.Client, port), vip)
			taken[tr.agreed(in)] = in
		}
		if len(taken) != 4 {
			tr.Fatalf("four flows have the ports %v", taken)
		}
		late := tr.frame("eth0", tr.at(tr.Client, clientPort+4), vip)
		tr.expectUnmodelled("eth0", late, Drop)
		tr.expectCounters(maps.PacketCounters{FlowNew: 4, FlowEstablished: 4, DropSnatPortsExhausted: 1})
		tr.model.counters.DropSnatPortsExhausted++

		for port, in := range taken {
			if again := tr.tupleOf(tr.run("eth0", in.later().Bytes())); again.from.Port() != port {
				tr.Errorf("the flow of port %d has become %v", port, again)
			}
		}
		tr.serve(tr.service("web", tr.remote(tr.OtherRemote)))
		tr.opened(late.From, vip)
	})
}

// A port that a socket of the node listens on, or that is connected to the backend, is not handed out.
func TestSNATLeavesSocketsTheirPorts(t *testing.T) {
	forEach(t, cases{settings: narrow(2), protocols: withSockets()}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		tr.listen(tr.at(tr.NodeEth0, 61000))
		for range 3 {
			vip := tr.at(tr.LoadBalancer, servicePort)
			if to := tr.opened(tr.at(tr.Client, clientPort), vip); to.from.Port() != 61001 {
				tr.Errorf("the flow has %v", to.from)
			}
		}
	})
}

// listen opens a socket of the trial's protocol until its end.
func (tr *trial) listen(at netip.AddrPort) {
	tr.Helper()
	var closer interface{ Close() error }
	var err error
	if tr.protocol == compile.TCP {
		closer, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	} else {
		closer, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	}
	if err != nil {
		tr.Fatal(err)
	}
	tr.Cleanup(func() { closer.Close() })
}

// quick are settings with one port, and with seconds of one jiffy.
func quick() *Settings {
	settings := narrow(1)
	settings.Constants.JiffiesPerSecond = 1
	return settings
}

// wait lets an embryo become old enough to lose its port: three jiffies, of at most 10 ms each.
func wait() { time.Sleep(50 * time.Millisecond) }

// A flow that nobody has answered for a while loses its port to a new one.
func TestSNATPortOfUnansweredFlow(t *testing.T) {
	forEach(t, cases{settings: quick()}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		vip := tr.at(tr.LoadBalancer, servicePort)
		tr.opened(tr.at(tr.Client, clientPort), vip)
		wait()
		tr.model.aged = true
		defer func() { tr.model.aged = false }()
		if to := tr.opened(tr.at(tr.OtherClient, clientPort), vip); to.from.Port() != 61000 {
			tr.Errorf("the flow has %v", to.from)
		}
		tr.wantTables(0, 2)
	})
}

// Where all ports are those of flows that are not established, a new flow takes one of theirs, as a flood of SYNs would
// keep new clients away else. Established ones keep their ports.
func TestSNATPortsOfAFlood(t *testing.T) {
	c := cases{settings: narrow(4), protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		vip := tr.at(tr.LoadBalancer, servicePort)
		established := tr.frame("eth0", tr.at(tr.Client, clientPort), vip)
		port := tr.agreed(established)
		tr.model.pressed = true
		defer func() { tr.model.pressed = false }()
		for i := range uint16(40) {
			in := tr.frame("eth0", tr.at(tr.OtherClient, clientPort+i), vip)
			to := tr.tupleOf(tr.run("eth0", in.Bytes()))
			if i%2 == 0 {
				tr.run("eth0", in.translated(to.from, to.to).answer(gatewayMAC(), tr.Device("eth0").MAC).Bytes())
			}
		}
		tr.wantTables(2, 2*3)
		if to := tr.tupleOf(tr.run("eth0", established.later().Bytes())); to.from.Port() != port {
			tr.Errorf("the established flow has %v, had port %d", to, port)
		}
		late := tr.frame("eth0", tr.at(tr.Client, clientPort+1), vip)
		if late := tr.agreed(late); late == port {
			tr.Errorf("a new flow has the port %d of the established one", late)
		}
		tr.wantTables(4, 2*2)
	})
}

// A datagram's flow that has been answered keeps its port, however old it is.
func TestSNATPortOfAnsweredFlow(t *testing.T) {
	c := cases{settings: quick(), protocols: []compile.Protocol{compile.UDP}}
	forEach(t, c, func(tr *trial) {
		in, translated := tr.toRemote()
		tr.run("eth0", translated.answer(gatewayMAC(), tr.Device("eth0").MAC).Bytes())
		wait()
		tr.expectUnmodelled("eth0", tr.frame("eth0", tr.at(tr.OtherClient, clientPort), in.To), Drop)
		tr.model.counters.DropSnatPortsExhausted++
		tr.run("eth0", in.later().Bytes())
		tr.wantTables(2, 0)
	})
}

// What arrives in the SNAT range and is nobody's is dropped: the host's answer would end a connection that is
// not the host's. A SYN is no answer.
func TestSNATOrphans(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		orphan := tr.frame("eth0", tr.at(tr.Remote, targetPort), tr.at(tr.NodeEth0, 61000)).later()
		tr.expectDrop("eth0", orphan)
		for _, to := range []netip.AddrPort{tr.at(tr.NodeEth0, 60999), tr.at(tr.Pod, 61000)} {
			tr.expectUntouched("eth0", orphan.translated(orphan.From, to).Bytes())
		}
		if tr.protocol == compile.TCP {
			tr.expectUntouched("eth0", tr.frame("eth0", orphan.From, orphan.To).Bytes())
		}
		tr.expectCounters(maps.PacketCounters{DropSnatOrphan: 1})
	})
}

// A socket of the node in the SNAT range gets its packets.
func TestSNATRangeWithSocket(t *testing.T) {
	forEach(t, cases{protocols: withSockets()}, func(tr *trial) {
		tr.listen(tr.at(tr.NodeEth0, 61000))
		in := tr.frame("eth0", tr.at(tr.Remote, targetPort), tr.at(tr.NodeEth0, 61000)).later()
		result := tr.expectUnmodelled("eth0", in, Pass)
		tr.compare(result, Pass, in.Bytes())
		tr.expectCounters(maps.PacketCounters{})
	})
}

// A port of the range that is also a frontend's is the frontend's.
func TestFrontendInTheSNATRange(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		web := tr.service("web", tr.local(tr.Pod))
		web.Frontends = []compile.Frontend{{Kind: compile.ExternalIP, Address: tr.at(tr.NodeEth0, 61000)}}
		tr.serve(web)
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.NodeEth0, 61000))
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
	})
}

// A source port range that goes round its end is tried to the last.
func TestSNATProbesTheWholeRange(t *testing.T) {
	for _, ports := range []uint16{2, 31, 32} {
		t.Run(fmt.Sprint(ports), func(t *testing.T) {
			c := cases{settings: narrow(ports), families: []compile.Family{compile.IPv6}}
			forEach(t, c, func(tr *trial) {
				tr.serve(tr.service("web", tr.remote(tr.Remote)))
				taken := make(map[uint16]bool)
				for port := range ports {
					to := tr.opened(tr.at(tr.Client, clientPort+port), tr.at(tr.LoadBalancer, servicePort))
					taken[to.from.Port()] = true
				}
				if len(taken) != int(ports) {
					tr.Errorf("%d flows have %d ports", ports, len(taken))
				}
			})
		})
	}
}

// A connection that both sides have ended, and that has been quiet for a second, loses its port to a new flow; one
// that lives keeps it, however quiet.
func TestSNATPortOfEndedFlow(t *testing.T) {
	c := cases{settings: quick(), protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		in, translated := tr.toRemote()
		tr.establish(in, translated)
		late := tr.frame("eth0", tr.at(tr.OtherClient, clientPort), in.To)
		wait()
		tr.expectUnmodelled("eth0", late, Drop)
		tr.model.counters.DropSnatPortsExhausted++

		last := in.later()
		last.TCP.FIN = true
		tr.run("eth0", last.Bytes())
		wait()
		tr.expectUnmodelled("eth0", late, Drop)
		tr.model.counters.DropSnatPortsExhausted++

		last = translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		last.TCP.FIN = true
		tr.run("eth0", last.Bytes())
		wait()
		tr.model.aged = true
		defer func() { tr.model.aged = false }()
		if to := tr.opened(late.From, late.To); to.from.Port() != 61000 {
			tr.Errorf("the flow has %v", to.from)
		}
		tr.wantTables(0, 2)
	})
}
