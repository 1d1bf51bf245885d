package packet

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// accessCases are the programs that open flows.
func accessCases() cases { return cases{programs: []Program{NodeXDP, NodeIngress, PodIngress}} }

// restricted returns a service whose load balancer address is for the prefixes of the trial's family.
func (tr *trial) restricted(prefixes ...string) compile.Service {
	service := tr.service("web", tr.local(tr.OtherPod))
	service.Restricted = true
	for _, text := range prefixes {
		if prefix := netip.MustParsePrefix(text); prefix.Addr().Is4() == (tr.family == compile.IPv4) {
			service.Sources = append(service.Sources, prefix)
		}
	}
	return service
}

// ask returns a client's or pod's first packet.
func (tr *trial) ask(to netip.AddrPort) (device string, in Frame) {
	device, from := tr.askedBy()
	return device, tr.podFrame(device, from, to)
}

// asked are prefixes that whoever asks (askedBy) is in.
var asked = []string{"203.0.113.4/30", "10.1.0.10/32", "2001:db8:c::/64", "fd00:1::10/128"}

// A load balancer address is for clients of its source ranges alone (rule L04).
func TestL04SourceRanges(t *testing.T) {
	ranges := map[string]struct {
		prefixes []string
		admits   bool
	}{
		"of the client":        {asked, true},
		"of others":            {[]string{"203.0.113.6/31", "10.1.0.11/32", "2001:db8:d::/64", "fd00:1::11/128"}, false},
		"none":                 {nil, false},
		"of others and of all": {[]string{"198.51.100.0/24", "0.0.0.0/0", "2001:db8:64::/64", "::/0"}, true},
		"of others within":     {append([]string{"203.0.113.5/32", "10.1.0.0/24", "fd00::/16"}, asked...), true},
	}
	for name, is := range ranges {
		t.Run(name, func(t *testing.T) {
			forEach(t, accessCases(), func(tr *trial) {
				tr.serve(tr.restricted(is.prefixes...))
				device, in := tr.ask(tr.at(tr.LoadBalancer, servicePort))
				if is.admits {
					tr.expect(device, in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
					return
				}
				tr.expectDrop(device, in)
				tr.expectCounters(maps.PacketCounters{DropSourceDenied: 1})
				tr.wantTables(0, 0)
			})
		})
	}
}

// What is not the load balancer's is for everybody (rules L04, L07, N06).
func TestN06OtherFrontendsHaveNoSourceRanges(t *testing.T) {
	frontends := map[string]func(tr *trial) netip.AddrPort{
		"cluster IP":  func(tr *trial) netip.AddrPort { return tr.at(tr.ClusterIP, servicePort) },
		"node port":   func(tr *trial) netip.AddrPort { return tr.at(tr.NodeEth0, nodePort) },
		"external IP": func(tr *trial) netip.AddrPort { return tr.at(tr.External, servicePort) },
	}
	for name, frontend := range frontends {
		t.Run(name, func(t *testing.T) {
			forEach(t, accessCases(), func(tr *trial) {
				tr.serve(tr.restricted())
				device, in := tr.ask(frontend(tr))
				tr.expect(device, in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
			})
		})
	}
}

// The ranges of one service are not another's.
func TestL04SourceRangesOfEachService(t *testing.T) {
	forEach(t, accessCases(), func(tr *trial) {
		open := newService(tr.family, tr.protocol, "open", servicePort+1, tr.local(tr.OtherPod))
		open.Restricted, open.Sources = true, tr.restricted(asked...).Sources
		tr.serve(tr.restricted(), open)
		device, in := tr.ask(tr.at(tr.LoadBalancer, servicePort))
		tr.expectDrop(device, in)
		device, in = tr.ask(tr.at(tr.LoadBalancer, servicePort+1))
		tr.expect(device, in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
	})
}

// Ranges change while the service lives: who was in is out, and flows that there are go on.
func TestL04SourceRangesChange(t *testing.T) {
	forEach(t, accessCases(), func(tr *trial) {
		tr.serve(tr.restricted(asked...))
		device, in := tr.ask(tr.at(tr.LoadBalancer, servicePort))
		translated := in.translated(in.From, tr.at(tr.OtherPod, targetPort))
		tr.expect(device, in, Pass, translated)
		tr.serve(tr.restricted())
		tr.expect(device, in, Pass, translated)
		in.From = netip.AddrPortFrom(in.From.Addr(), clientPort+1)
		tr.expectDrop(device, in)
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		tr.expect(device, in, Pass, in.translated(in.From, tr.at(tr.OtherPod, targetPort)))
	})
}
