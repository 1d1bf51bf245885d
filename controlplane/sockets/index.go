package sockets

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	weirmaps "github.com/weir-lb/weir/maps"
)

// destination is what an application connects to.
type destination struct {
	protocol compile.Protocol
	address  netip.AddrPort
}

// index finds services by their frontends.
type index struct {
	services []compile.Service
	by       map[destination]int
	tcp      bool // some service ends connections
}

func newIndex(services []compile.Service) index {
	i := index{services: services, by: map[destination]int{}}
	for at, service := range services {
		for _, frontend := range service.Frontends {
			i.by[destination{service.ID.Protocol, frontend.Address}] = at
		}
		i.tcp = i.tcp || service.RemovedEndpoints.End
	}
	return i
}

// protocols are those whose sockets are looked at.
func (i index) protocols() []compile.Protocol {
	if i.tcp {
		return []compile.Protocol{compile.UDP, compile.TCP}
	}
	return []compile.Protocol{compile.UDP}
}

// ends tells whether a connected socket is to be closed, and after which time. UDP sockets are, when their backend has
// left the service, or the service is gone; those of TCP where the service asks for it.
func (i index) ends(protocol compile.Protocol, peer weirmaps.SocketPeer) (end bool, after time.Duration) {
	frontend := netip.AddrPortFrom(peer.Frontend.Addr(), peer.FrontendPort)
	service, known := i.find(protocol, frontend)
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
func (i index) find(protocol compile.Protocol, frontend netip.AddrPort) (service compile.Service, known bool) {
	at, known := i.by[destination{protocol, frontend}]
	if !known {
		unspecified := netip.IPv4Unspecified()
		if frontend.Addr().Is6() {
			unspecified = netip.IPv6Unspecified()
		}
		at, known = i.by[destination{protocol, netip.AddrPortFrom(unspecified, frontend.Port())}]
	}
	if !known {
		return service, false
	}
	return i.services[at], true
}
