package apply

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// cluster returns 10,000 services of 10 endpoints each.
func cluster() []compile.Service {
	all := make([]compile.Service, 10000)
	for n := range all {
		all[n] = compile.Service{
			ID: compile.ID{Namespace: fmt.Sprintf("n%d", n%100), Name: fmt.Sprintf("s%d", n), Protocol: compile.TCP, Family: compile.IPv4},
			Frontends: []compile.Frontend{{
				Kind: compile.ClusterIP, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(n >> 8), byte(n)}), 80),
			}},
			OutsideAlgorithm: maps.AlgorithmMaglev,
		}
		for host := range 10 {
			all[n].Inside = append(all[n].Inside, endpoint(10*n+host))
		}
		all[n].Outside = all[n].Inside
	}
	return all
}

func endpoint(n int) compile.Backend {
	address := netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)})
	return compile.Backend{Address: netip.AddrPortFrom(address, 8080)}
}

// BenchmarkSync fills empty maps.
func BenchmarkSync(b *testing.B) {
	all := cluster()
	for b.Loop() {
		b.StopTimer()
		set := newSet(b, maps.DefaultSizes())
		a := newApplier(b, set)
		b.StartTimer()
		mustSync(b, a, all...)
		b.StopTimer()
		set.Close()
		b.StartTimer()
	}
}

// BenchmarkRestart is what a new agent does over maps that are right.
func BenchmarkRestart(b *testing.B) {
	all := cluster()
	set := newSet(b, maps.DefaultSizes())
	mustSync(b, newApplier(b, set), all...)
	for b.Loop() {
		a := newApplier(b, set)
		mustSync(b, a, all...)
		if writes := a.Writes(); writes > 0 {
			b.Fatalf("%d writes", writes)
		}
	}
}

// BenchmarkApply changes one endpoint of one service among many.
func BenchmarkApply(b *testing.B) {
	all := cluster()
	set := newSet(b, maps.DefaultSizes())
	a := newApplier(b, set)
	mustSync(b, a, all...)
	writes, n := a.Writes(), 0
	for b.Loop() {
		want := all[n%len(all)]
		want.Inside = append(append([]compile.Backend(nil), want.Inside[:9]...), endpoint(100000+n%20000))
		want.Outside = want.Inside
		mustApply(b, a, []compile.Service{want})
		n++
	}
	b.ReportMetric(float64(a.Writes()-writes)/float64(n), "writes/op")
}
