package sockets

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	weirmaps "github.com/weir-lb/weir/maps"
)

// Services are those that the maps shall hold; a *controlplane.Controller has them.
type Services interface {
	// Find returns the service that has a frontend.
	Find(address netip.AddrPort, protocol compile.Protocol) (service compile.Service, known bool)
	// EndsTCP tells whether there is a service whose TCP connections end with their endpoint.
	EndsTCP() bool
}

// protocols are those whose sockets are looked at.
func protocols(services Services) []compile.Protocol {
	if services.EndsTCP() {
		return []compile.Protocol{compile.UDP, compile.TCP}
	}
	return []compile.Protocol{compile.UDP}
}

// ends tells whether a connected socket is to be closed, and after which time. UDP sockets are, when their backend has
// left the service, or the service is gone; those of TCP where the service asks for it.
func ends(services Services, protocol compile.Protocol, peer weirmaps.SocketPeer) (end bool, after time.Duration) {
	frontend := netip.AddrPortFrom(peer.Frontend.Addr(), peer.FrontendPort)
	service, known := find(services, protocol, frontend)
	if !known {
		return protocol == compile.UDP, 0
	}
	backend := netip.AddrPortFrom(peer.Backend.Addr(), peer.BackendPort)
	if _, serves := slices.BinarySearchFunc(service.Serving, backend, netip.AddrPort.Compare); serves {
		return false, 0
	}
	if protocol == compile.UDP {
		return true, 0
	}
	return service.RemovedEndpoints.End, service.RemovedEndpoints.After
}

// find returns the service of a frontend, which may be a NodePort on any address of the node.
func find(services Services, protocol compile.Protocol, frontend netip.AddrPort) (service compile.Service, known bool) {
	if service, known = services.Find(frontend, protocol); known {
		return service, true
	}
	unspecified := netip.IPv4Unspecified()
	if frontend.Addr().Is6() {
		unspecified = netip.IPv6Unspecified()
	}
	return services.Find(netip.AddrPortFrom(unspecified, frontend.Port()), protocol)
}
