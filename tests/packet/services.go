package packet

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// nodePortBase is the NodePort of a service's port 0.
const nodePortBase = 30000

// newService returns a service with a frontend of every kind on a port, and a NodePort of 30000 more. The
// backends serve traffic of the inside and the outside alike.
func newService(family compile.Family, protocol compile.Protocol, name string, port uint16,
	backends ...compile.Backend,
) compile.Service {
	hosts := NewHosts()
	any := pair("0.0.0.0", "::")
	backends = slices.Clone(backends)
	slices.SortFunc(backends, func(a, b compile.Backend) int { return a.Address.Compare(b.Address) })
	return compile.Service{
		ID:      compile.ID{Namespace: "default", Name: name, Protocol: protocol, Family: family},
		Created: time.Unix(1700000000, 0),
		Frontends: []compile.Frontend{
			{Kind: compile.ClusterIP, Address: hosts.ClusterIP.Port(family, port)},
			{Kind: compile.NodePort, Address: any.Port(family, nodePortBase+port)},
			{Kind: compile.LoadBalancer, Address: hosts.LoadBalancer.Port(family, port)},
			{Kind: compile.ExternalIP, Address: hosts.External.Port(family, port)},
		},
		Inside:           backends,
		Outside:          backends,
		InsideAlgorithm:  maps.AlgorithmRandom,
		OutsideAlgorithm: maps.AlgorithmMaglev,
	}
}

// Reserved is what becomes of packets that no frontend is for.
type Reserved map[netip.Prefix]maps.ClusterIPUse

// use returns what becomes of those to an address; 0: nothing is known of it.
func (r Reserved) use(address netip.Addr) maps.ClusterIPUse {
	longest := -1
	for prefix := range r {
		if prefix.Contains(address) && prefix.Bits() > longest {
			longest = prefix.Bits()
		}
	}
	prefix, _ := address.Prefix(max(longest, 0))
	return r[prefix]
}

// clusterRanges are the ServiceCIDRs, with the ClusterIP of every service, an external address among them, and one that
// is the node's.
func clusterRanges() Reserved {
	hosts, reserved := NewHosts(), Reserved{}
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		bits := map[compile.Family]int{compile.IPv4: 24, compile.IPv6: 112}[family]
		for _, host := range []Pair{hosts.ClusterIP, hosts.NodeEth1} {
			prefix, _ := host.Of(family).Prefix(bits)
			reserved[prefix] = maps.ClusterIPUnallocated
		}
		reserved[prefixOf(hosts.ClusterIP, family)] = maps.ClusterIPAllocated
		reserved[prefixOf(hosts.LeftIP, family)] = maps.ClusterIPLeft
	}
	return reserved
}
