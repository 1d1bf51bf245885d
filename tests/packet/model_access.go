package packet

import (
	"net/netip"
	"slices"

	"github.com/weir-lb/weir/controlplane/compile"
)

// isAdmitted tells whether the packet's source may use the frontend: source ranges speak of load balancer addresses
// alone (rules L04, N06).
func (v *visit) isAdmitted(service *compile.Service) bool {
	asked := compile.Frontend{Kind: compile.LoadBalancer, Address: v.tuple.to}
	if !service.Restricted || !slices.Contains(service.Frontends, asked) {
		return true
	}
	contains := func(prefix netip.Prefix) bool { return prefix.Contains(v.tuple.from.Addr()) }
	return slices.ContainsFunc(service.Sources, contains)
}
