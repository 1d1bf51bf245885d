package packet

import "testing"

// exchangeOnWire has a client on eth0 and a backend behind eth1 exchange packets until the flow is established and
// remembers its next hops. It returns the client's packet and what became of it.
func (tr *trial) exchangeOnWire(client, backend *Wire) (in, translated Frame) {
	tr.Helper()
	tr.serve(tr.service("web", tr.remote(tr.RemoteSecond)))
	tr.attachNode("eth0", "eth1")
	in = tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort))
	tr.send(client, in)
	translated = in.translated(tr.at(tr.NodeEth1, 61500), tr.at(tr.RemoteSecond, targetPort))
	tr.wantOnWire(backend, tr.routed(translated, "eth1", secondGatewayMAC()))
	answer := translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC)
	for range 2 {
		tr.send(backend, answer)
		tr.wantOnWire(client, tr.routed(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
		tr.send(client, in.later())
		tr.wantOnWire(backend, tr.routed(translated.later(), "eth1", secondGatewayMAC()))
	}
	return in.later(), translated.later()
}

// At tc packets of a flow go by the next hop that it remembers, and the kernel is not asked for the neighbour: for a
// moment it may forget it. In tests that never ends.
func TestWireRememberedHop(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		client, backend := tr.wire("eth0", false), tr.wire("eth1", false)
		in, translated := tr.exchangeOnWire(client, backend)
		tr.forgetNeighbour("eth1", tr.SecondGateway, secondGatewayMAC())
		tr.send(client, in)
		tr.wantOnWire(backend, tr.routed(translated, "eth1", secondGatewayMAC()))
	})
}

// A packet of the same flow that comes by a device without Ethernet header has no place for MACs.
func TestWireRememberedHopWithoutEthernet(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		device, tun := tr.addTun(pair("192.0.9.1", "2001:db8:9::1"))
		tr.attachTo(tr.Programs.NodeIngress, device, ingress)
		client, backend := tr.wire("eth0", false), tr.wire("eth1", false)
		in, translated := tr.exchangeOnWire(client, backend)
		_, err := tun.Write(in.withoutEthernet().Bytes())
		tr.must(err)
		tr.wantOnWire(backend, tr.routed(translated, "eth1", secondGatewayMAC()))
	})
}
