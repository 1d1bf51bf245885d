package vips_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/vips"
	"github.com/weir-lb/weir/maps"
)

// nothing is an Applier that has nothing to do.
type nothing struct{}

func (nothing) Sync([]compile.Service) error { return nil }

func (nothing) Apply([]compile.Service, []compile.ID) error { return nil }
func (nothing) Problems() []compile.Problem                 { return nil }

// service is one with frontends of every kind on a port, and so many backends.
func service(name string, port uint16, inside, outside int) compile.Service {
	frontend := func(kind compile.FrontendKind, address string) compile.Frontend {
		return compile.Frontend{Kind: kind, Address: netip.AddrPortFrom(netip.MustParseAddr(address), port)}
	}
	return compile.Service{
		ID: compile.ID{Namespace: "default", Name: name, Protocol: compile.TCP, Family: compile.IPv4},
		Frontends: []compile.Frontend{
			frontend(compile.ClusterIP, "10.96.0.1"),
			frontend(compile.NodePort, "0.0.0.0"),
			frontend(compile.LoadBalancer, "203.0.113.1"),
		},
		Inside: make([]compile.Backend, inside), Outside: make([]compile.Backend, outside),
	}
}

// An address answers a ping as long as one of its ports has a backend on that side, and is one as long as it has a
// port (rule C09).
func TestC09Addresses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes maps: needs root")
	}
	set, err := maps.New(maps.Sizes{
		Services: 8, Frontends: 64, Backends: 16, SlotBlocks: 64, Sources: 8, FlowsIPv4: 64, FlowsIPv6: 64, Embryos: 64, Affinity: 64, Devices: 8,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	const both = maps.VIPAnswersInside | maps.VIPAnswersOutside
	web, dns := service("web", 80, 2, 1), service("dns", 53, 1, 0)
	restricted := web
	restricted.Restricted = true
	follower := vips.Follow(nothing{}, set, true)
	check := func(when string, want map[string]uint32) {
		t.Helper()
		got := map[string]uint32{}
		err := maps.Each(set.VIPs, func(address maps.Address, flags uint32) bool {
			got[address.Addr().String()] = flags
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	all := func(flags uint32) map[string]uint32 {
		return map[string]uint32{"10.96.0.1": flags, "203.0.113.1": flags}
	}
	sync := func(f *vips.Follower, services ...compile.Service) {
		t.Helper()
		if err := f.Sync(services); err != nil {
			t.Fatal(err)
		}
	}
	apply := func(changed []compile.Service, removed ...compile.ID) {
		t.Helper()
		if err := follower.Apply(changed, removed); err != nil {
			t.Fatal(err)
		}
	}
	sync(follower, web, dns)
	check("two services", all(both))
	apply(nil, web.ID)
	check("one of them, with backends inside", all(maps.VIPAnswersInside))
	apply([]compile.Service{service("dns", 53, 0, 0)})
	check("without backends", all(0))
	apply([]compile.Service{restricted})
	check("a load balancer address that is not for everybody", map[string]uint32{"10.96.0.1": both, "203.0.113.1": 0})
	sync(vips.Follow(nothing{}, set, false), web)
	check("without answers", all(0))
	sync(vips.Follow(nothing{}, set, true))
	check("without services", map[string]uint32{})
}
