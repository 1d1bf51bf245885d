package tally

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
)

// some returns a service with backends by chance, of few addresses.
func some(random *rand.Rand) compile.Service {
	list := func() (backends []compile.Backend) {
		for range random.IntN(4) {
			address := netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", random.IntN(6)))
			if random.IntN(4) == 0 {
				address = netip.MustParseAddr(fmt.Sprintf("fd00::%d", random.IntN(6)))
			}
			backends = append(backends, compile.Backend{
				Address: netip.AddrPortFrom(address, uint16(8080+random.IntN(2))), Local: random.IntN(4) == 0,
			})
		}
		return backends
	}
	s := compile.Service{Inside: list(), Outside: list(), RemovedEndpoints: compile.RemovedEndpoints{End: random.IntN(8) == 0}}
	for port := range random.IntN(3) {
		s.Frontends = append(s.Frontends, compile.Frontend{Address: netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), uint16(port))})
	}
	return s
}

// TestReplace says the same as who counts everything anew, whatever has happened.
func TestReplace(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	tally, services, told := New(), map[int]compile.Service{}, map[netip.Addr]bool{}
	for round := range 5000 {
		number, now := random.IntN(5), compile.Service{}
		if random.IntN(4) > 0 {
			now = some(random)
		}
		tally.Replace(services[number], now)
		services[number] = now
		if random.IntN(3) > 0 {
			continue
		}
		for moved, came := range tally.Moves().Backends {
			address := moved.Addr()
			if told[address] == came {
				t.Fatalf("round %d: %s came or left twice: %t", round, address, came)
			}
			if told[address] = came; !came {
				delete(told, address)
			}
		}
		elsewhere, frontends, ends := map[netip.Addr]bool{}, 0, false
		for _, service := range services {
			frontends += len(service.Frontends)
			ends = ends || service.RemovedEndpoints.End
			for _, side := range [][]compile.Backend{service.Inside, service.Outside} {
				for _, backend := range side {
					if !backend.Local {
						elsewhere[backend.Address.Addr()] = true
					}
				}
			}
		}
		if !maps.Equal(told, elsewhere) || tally.Frontends() != frontends || tally.EndsTCP() != ends {
			t.Fatalf("round %d: told of backends at %v with %d frontends, ends %t; there are %v, %d, %t",
				round, told, tally.Frontends(), tally.EndsTCP(), elsewhere, frontends, ends)
		}
	}
}

// TestClusterIPs says that ClusterIPs may be others where frontends are, and not where only endpoints are.
func TestClusterIPs(t *testing.T) {
	tally, service := New(), some(rand.New(rand.NewPCG(1, 1)))
	service.Frontends = []compile.Frontend{{Kind: compile.ClusterIP, Address: netip.MustParseAddrPort("10.96.0.1:80")}}
	expect := func(what string, was, is compile.Service, want bool) {
		t.Helper()
		tally.Replace(was, is)
		if got := tally.Moves().ClusterIPs; got != want {
			t.Errorf("%s: ClusterIPs may be others: %t", what, got)
		}
	}
	scaled := service
	scaled.Inside = append([]compile.Backend{{Address: netip.MustParseAddrPort("10.0.0.9:80")}}, service.Inside...)
	expect("a service comes", compile.Service{}, service, true)
	expect("an endpoint comes", service, scaled, false)
	expect("it goes", scaled, compile.Service{}, true)
}
