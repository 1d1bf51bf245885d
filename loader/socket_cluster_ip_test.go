package loader

import (
	"net/netip"
	"syscall"
	"testing"

	"github.com/weir-lb/weir/controlplane/clusterips"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// TestC05SocketEdge asks for unknown ports of ClusterIPs and for addresses of ServiceCIDRs that no Service has.
func TestC05SocketEdge(t *testing.T) {
	edge := newSocketEdge(t, Constants{})
	local := answer(t, "127.0.0.1", "local")
	edge.serve(t, socketService("web", compile.TCP, "10.96.0.1:80", local), socketService("web6", compile.TCP, "[fd00:96::1]:80", local))
	err := clusterips.NewWriter(edge.set).Sync(map[netip.Prefix]maps.ClusterIPUse{
		netip.MustParsePrefix("10.96.0.0/24"):   maps.ClusterIPUnallocated,
		netip.MustParsePrefix("10.96.0.1/32"):   maps.ClusterIPAllocated,
		netip.MustParsePrefix("fd00:96::/112"):  maps.ClusterIPUnallocated,
		netip.MustParsePrefix("fd00:96::1/128"): maps.ClusterIPAllocated,
		netip.MustParsePrefix("127.0.0.0/24"):   maps.ClusterIPUnallocated,
		netip.PrefixFrom(local.Addr(), 32):      maps.ClusterIPLeft,
	})
	if err != nil {
		t.Fatal(err)
	}
	refused, unreachable := socketReport{Errno: int(syscall.ECONNREFUSED)}, socketReport{Errno: int(syscall.EHOSTUNREACH)}
	for _, test := range []struct {
		name, network, address string
		want                   socketReport
	}{
		{"known port", "tcp", "10.96.0.1:80", socketReport{0, "local", "10.96.0.1:80"}},
		{"unknown port", "tcp", "10.96.0.1:81", refused},
		{"unknown port, v6", "tcp", "[fd00:96::1]:81", refused},
		{"unknown port on a v4-mapped socket", "tcp", "[::ffff:10.96.0.1]:81", refused},
		{"unknown port, connected UDP", "udp", "10.96.0.1:80", refused},
		{"unknown port, unconnected UDP", "sendto", "[fd00:96::1]:80", refused},
		{"nobody's address", "tcp", "10.96.0.2:80", unreachable},
		{"nobody's address, v6", "tcp", "[fd00:96::2]:80", unreachable},
		{"nobody's address, unconnected UDP", "sendto", "10.96.0.2:80", unreachable},
		{"left alone", "tcp", local.String(), socketReport{0, "local", local.String()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := inCgroup(t, edge.cgroup, test.network, test.address); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
