package packet

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// busy returns a service with least-connections.
func (tr *trial) busy(backends ...compile.Backend) compile.Service {
	service := tr.service("web", backends...)
	service.InsideAlgorithm, service.OutsideAlgorithm = maps.AlgorithmLeastConnections, maps.AlgorithmLeastConnections
	return service
}

// open returns how many flows are open to each backend.
func (tr *trial) open() map[netip.AddrPort]int32 {
	tr.Helper()
	open := map[netip.AddrPort]int32{}
	err := maps.Each(tr.Maps.Backends, func(index uint32, backend maps.Backend) bool {
		var load maps.BackendLoad
		if err := tr.Maps.BackendLoads.Lookup(index, &load); err != nil {
			tr.Fatal(err)
		}
		if backend.Generation != 0 {
			open[netip.AddrPortFrom(backend.Address.Addr(), backend.Port)] = load.Open()
		}
		return true
	})
	if err != nil {
		tr.Fatal(err)
	}
	return open
}

// asking opens a flow from the nth port, and returns the packet and its backend.
func (tr *trial) asking(n uint16) (device string, in Frame, backend netip.AddrPort) {
	tr.Helper()
	device, in = tr.ask(tr.at(tr.ClusterIP, servicePort))
	in.From = netip.AddrPortFrom(in.From.Addr(), clientPort+n)
	return device, in, tr.tupleOf(tr.run(device, in.Bytes())).to
}

// Of two backends the one with fewer flows gets the next one, so that they never differ by more than one.
func TestLeastConnections(t *testing.T) {
	forEach(t, accessCases(), func(tr *trial) {
		one, other := tr.at(tr.OtherPod, targetPort), tr.at(tr.BarePod, targetPort)
		tr.serve(tr.busy(tr.local(tr.OtherPod), tr.local(tr.BarePod)))
		for n := range uint16(20) {
			tr.asking(n)
			if open := tr.open(); max(open[one]-open[other], open[other]-open[one]) > 1 {
				tr.Fatalf("after %d flows there are open: %v", n+1, open)
			}
		}
	})
}

// A flow that its client closes or resets is open no more, once; and neither is the backend's share then.
func TestLeastConnectionsOfClosedFlows(t *testing.T) {
	c := accessCases()
	c.protocols = []compile.Protocol{compile.TCP}
	forEach(t, c, func(tr *trial) {
		one := tr.at(tr.OtherPod, targetPort)
		tr.serve(tr.busy(tr.local(tr.OtherPod)))
		var device string
		var flows []Frame
		for n := range uint16(4) {
			where, in, _ := tr.asking(n)
			device, flows = where, append(flows, in)
		}
		for i, end := range []TCPFields{{FIN: true, ACK: true}, {RST: true}} {
			for range 2 {
				in := flows[i]
				in.TCP = end
				tr.run(device, in.Bytes())
			}
		}
		if open := tr.open(); open[one] != 2 {
			tr.Fatalf("there are open: %v, want 2", open)
		}
		tr.serve(tr.busy(tr.local(tr.OtherPod), tr.local(tr.BarePod)))
		for n := range uint16(2) {
			if _, _, backend := tr.asking(10 + n); backend != tr.at(tr.BarePod, targetPort) {
				tr.Errorf("the busier backend gets flow %d", n)
			}
		}
	})
}

// A service without least-connections counts as well: it may be switched live.
func TestLeastConnectionsSwitchedLive(t *testing.T) {
	forEach(t, accessCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		for n := range uint16(3) {
			tr.asking(n)
		}
		tr.serve(tr.busy(tr.local(tr.OtherPod), tr.local(tr.BarePod)))
		for n := range uint16(3) {
			if _, _, backend := tr.asking(10 + n); backend != tr.at(tr.BarePod, targetPort) {
				tr.Errorf("the busier backend gets flow %d", n)
			}
		}
	})
}
