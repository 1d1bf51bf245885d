package packet

import (
	"net"
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// echoCases: who arrives from outside, and a pod.
func echoCases() cases {
	return cases{programs: []Program{NodeIngress, PodIngress}, protocols: []compile.Protocol{compile.UDP}}
}

// ping returns an echo request of the trial's client.
func (tr *trial) ping(to Pair) (device string, request ErrorFrame) {
	device, from := tr.askedBy()
	return device, ErrorFrame{
		SourceMAC: gatewayMAC(), DestinationMAC: tr.Device(device).MAC, From: from.Addr(), To: to.Of(tr.family),
		Message: EchoRequest, Rest: 0x12340001, TTL: 9, Quote: []byte("some data of an odd length"),
	}
}

// answered returns the reply to an echo request.
func (f ErrorFrame) answered() ErrorFrame {
	f.SourceMAC, f.DestinationMAC, f.From, f.To = f.DestinationMAC, f.SourceMAC, f.To, f.From
	f.Message, f.TTL = EchoReply, 64
	return f
}

// nobody is an address that no host has.
func (tr *trial) nobody() netip.Addr {
	return netip.MustParseAddr(map[compile.Family]string{compile.IPv4: "127.0.0.1", compile.IPv6: "fe80::1"}[tr.family])
}

// A ping of a VIP with a backend is answered.
func TestC09Ping(t *testing.T) {
	forEach(t, echoCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		for _, vip := range []Pair{tr.ClusterIP, tr.LoadBalancer, tr.External} {
			device, request := tr.ping(vip)
			tr.expectError(tr.program, device, request, Redirect, request.answered())
		}
		tr.expectCounters(maps.PacketCounters{IcmpEcho: 3})
	})
}

// What would not be answered by a backend, or is somebody else's to answer, is left alone.
func TestC09PingLeftAlone(t *testing.T) {
	variants := map[string]func(tr *trial, request *ErrorFrame){
		"a VIP without backends":      func(tr *trial, _ *ErrorFrame) { tr.serve(tr.service("web")) },
		"no VIP":                      func(tr *trial, request *ErrorFrame) { request.To = tr.Remote.Of(tr.family) },
		"an address of the node":      func(tr *trial, request *ErrorFrame) { request.To = tr.NodeEth0.Of(tr.family) },
		"a reply":                     func(_ *trial, request *ErrorFrame) { request.Message = EchoReply },
		"for another MAC":             func(_ *trial, request *ErrorFrame) { request.DestinationMAC = strangerMAC() },
		"a load balancer's for a few": func(tr *trial, _ *ErrorFrame) { tr.serve(tr.restricted("192.0.2.0/24", "2001:db8:2::/64")) },
		"from an address of nobody":   func(tr *trial, request *ErrorFrame) { request.From = tr.nobody() },
		"to all hosts of the link": func(_ *trial, request *ErrorFrame) {
			request.DestinationMAC = net.HardwareAddr{255, 255, 255, 255, 255, 255}
		},
		"with a code that has no sense": func(_ *trial, request *ErrorFrame) { request.Message.Code4, request.Message.Code6 = 1, 1 },
	}
	for name, vary := range variants {
		t.Run(name, func(t *testing.T) {
			forEach(t, echoCases(), func(tr *trial) {
				tr.serve(tr.service("web", tr.remote(tr.Remote)))
				device, request := tr.ping(tr.LoadBalancer)
				vary(tr, &request)
				tr.expectUntouched(device, request.Bytes())
			})
		})
	}
}

// A CPU answers so many pings in a second, and no more.
func TestC09PingRate(t *testing.T) {
	forEach(t, echoCases(), func(tr *trial) {
		release := pinToCPU(t)
		defer release()
		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		device, request := tr.ping(tr.ClusterIP)
		for range icmpRate {
			tr.run(device, request.Bytes())
		}
		if result := tr.run(device, request.Bytes()); result.Verdict != Drop {
			tr.Errorf("one more gets %s", result.Verdict)
		}
		tr.expectCounters(maps.PacketCounters{IcmpEcho: icmpRate, IcmpLimited: 1})
	})
}
