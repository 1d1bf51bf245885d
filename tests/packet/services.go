package packet

import (
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
