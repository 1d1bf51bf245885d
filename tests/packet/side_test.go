package packet

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// localService has backends for the inside alone, as externalTrafficPolicy Local without a local endpoint.
func (tr *trial) localService() compile.Service {
	service := tr.service("web", tr.local(tr.OtherPod))
	service.Outside = nil
	return service
}

// bySource are the trials with detectLocalMode ClusterCIDR or NodeCIDR.
func bySource() cases {
	settings := DefaultSettings()
	settings.Constants.InsideBySource = true
	return cases{settings: &settings}
}

func (tr *trial) setInside(prefixes ...netip.Prefix) {
	tr.Helper()
	tr.model.insiders = prefixes
	if err := tr.SetInside(prefixes...); err != nil {
		tr.Fatal(err)
	}
}

// What comes from a pod elsewhere counts as inside, where detectLocalMode knows its address (rules C03, P03, P09); what
// comes from others does not. In both families, at once.
func TestP03InsideBySource(t *testing.T) {
	forEach(t, bySource(), func(tr *trial) {
		tr.serve(tr.localService())
		tr.setInside(netip.MustParsePrefix("203.0.113.4/31"), netip.MustParsePrefix("2001:db8:c::4/127"), prefixOf(tr.Pod, tr.family))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
		tr.expectDrop("eth0", tr.frame("eth0", tr.at(tr.OtherClient, clientPort), tr.at(tr.LoadBalancer, servicePort)))
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, DropNoLocalEndpoint: 1})
	})
}

// Without a mode no source is inside, whatever the map has.
func TestP03NoMode(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.localService())
		tr.setInside(prefixOf(tr.Client, tr.family))
		tr.expectDrop("eth0", tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)))
	})
}

// A backend elsewhere answers this node, also to a client that counts as inside.
func TestP03InsideToRemoteBackend(t *testing.T) {
	forEach(t, bySource(), func(tr *trial) {
		service := tr.service("web", tr.remote(tr.Remote))
		service.Outside = nil
		tr.serve(service)
		tr.setInside(prefixOf(tr.Client, tr.family))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		to := tr.tupleOf(tr.run("eth0", in.Bytes()))
		if to.from.Addr() != tr.NodeEth0.Of(tr.family) || to.to != tr.at(tr.Remote, targetPort) {
			tr.Errorf("it becomes %v", to)
		}
	})
}

// What comes by a pods' device counts as inside (BridgeInterface, InterfaceNamePrefix).
func TestP03InsideByDevice(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		device := tr.Device("eth1")
		before := device.Record
		defer func() { device.Record = before }()
		device.Record.Flags |= maps.DeviceInside
		tr.begin()
		if err := tr.ForgetDevices(); err != nil {
			tr.Fatal(err)
		}
		tr.serve(tr.localService())
		in := tr.frame("eth1", tr.at(tr.SecondClient, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.expect("eth1", in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
		tr.expectDrop("eth0", tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)))
	})
}
