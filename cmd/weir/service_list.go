package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// serviceView is a service as the maps have it. Its JSON is documented in docs/cli.md.
type serviceView struct {
	Name            string         `json:"name"` // namespace/name:port/protocol/family
	ID              uint32         `json:"id"`
	Frontends       []frontendView `json:"frontends"`
	NoEndpoints     bool           `json:"noEndpoints"` // in the whole cluster: new flows are rejected
	AffinitySeconds uint32         `json:"affinitySeconds"`
	Restricted      bool           `json:"restricted"`   // its LoadBalancer addresses are for clients of the source ranges alone
	SourceRanges    []string       `json:"sourceRanges"` // none: everybody, or nobody where it is restricted
	Inside          tableView      `json:"inside"`
	Outside         tableView      `json:"outside"`
	Backends        []backendView  `json:"backends"`
	Traffic         trafficView    `json:"traffic"`
	Rate            *rateView      `json:"rate,omitempty"`
}

// frontendView is an address that clients send to.
type frontendView struct {
	Address  string `json:"address"` // a NodePort's is "*:port": any address of the node
	Protocol string `json:"protocol"`
	Kind     string `json:"kind"` // ClusterIP, NodePort, LoadBalancer, ExternalIP
}

// tableView is a selection table.
type tableView struct {
	Algorithm string `json:"algorithm"`
	Slots     uint32 `json:"slots"`
}

// backendView is an endpoint that a service sends to. A share is the part of the slots that name it.
type backendView struct {
	Index        uint32      `json:"index"`
	Address      string      `json:"address"`
	Local        bool        `json:"local"`
	Tunnel       bool        `json:"tunnel"` // packets from outside go to its node in a tunnel
	Terminating  bool        `json:"terminating"`
	Open         int32       `json:"open"`        // flows, and connected sockets of the socket edge
	Quarantined  bool        `json:"quarantined"` // silent: new flows go to others
	InsideShare  float64     `json:"insideShare"`
	OutsideShare float64     `json:"outsideShare"`
	Traffic      trafficView `json:"traffic"`
	Rate         *rateView   `json:"rate,omitempty"`
}

// trafficView is what has been counted since the service or backend came.
type trafficView struct {
	Flows        uint64 `json:"flows"`
	Packets      uint64 `json:"packets"`
	Bytes        uint64 `json:"bytes"`
	ReplyPackets uint64 `json:"replyPackets"`
	ReplyBytes   uint64 `json:"replyBytes"`
}

// rateView is trafficView per second, over the interval that was watched.
type rateView struct {
	Flows        float64 `json:"flowsPerSecond"`
	Packets      float64 `json:"packetsPerSecond"`
	Bytes        float64 `json:"bytesPerSecond"`
	ReplyPackets float64 `json:"replyPacketsPerSecond"`
	ReplyBytes   float64 `json:"replyBytesPerSecond"`
}

// rateOf returns what passed between two readings that many seconds apart.
func rateOf(before, after trafficView, seconds float64) *rateView {
	per := func(before, after uint64) float64 {
		if after < before { // the counters were given to another
			return 0
		}
		return float64(after-before) / seconds
	}
	return &rateView{
		Flows:        per(before.Flows, after.Flows),
		Packets:      per(before.Packets, after.Packets),
		Bytes:        per(before.Bytes, after.Bytes),
		ReplyPackets: per(before.ReplyPackets, after.ReplyPackets),
		ReplyBytes:   per(before.ReplyBytes, after.ReplyBytes),
	}
}

// addRates adds to each service and backend what passed since an earlier reading.
func addRates(before, after []serviceView, seconds float64) {
	earlier := make(map[string]*serviceView, len(before))
	for i := range before {
		earlier[before[i].Name] = &before[i]
	}
	for i := range after {
		service := &after[i]
		old, known := earlier[service.Name]
		if !known {
			continue
		}
		service.Rate = rateOf(old.Traffic, service.Traffic, seconds)
		for j := range service.Backends {
			backend := &service.Backends[j]
			at := slices.IndexFunc(old.Backends, func(b backendView) bool { return b.Address == backend.Address })
			if at >= 0 {
				backend.Rate = rateOf(old.Backends[at].Traffic, backend.Traffic, seconds)
			}
		}
	}
}

// named tells whether a name that a person gave means the service: its whole name, or a leading part of it, with
// or without the namespace.
func named(service, given string) bool {
	_, bare, _ := strings.Cut(service, "/")
	for _, name := range []string{service, bare} {
		rest, found := strings.CutPrefix(name, given)
		if given != "" && found && (rest == "" || rest[0] == ':' || rest[0] == '/') {
			return true
		}
	}
	return false
}

// viewFrontend returns a frontend as people read it.
func viewFrontend(key maps.FrontendKey, kind maps.FrontendKind) frontendView {
	view := frontendView{
		Address:  key.AddrPort().String(),
		Protocol: compile.Protocol(key.Protocol).String(),
		Kind:     viewKind(kind),
	}
	if key.AddrPort().Addr().IsUnspecified() {
		view.Address = fmt.Sprintf("*:%d", key.Port)
	}
	return view
}

// viewKind names a kind of frontend, as compile does.
func viewKind(kind maps.FrontendKind) string {
	switch kind {
	case maps.FrontendClusterIP:
		return string(compile.ClusterIP)
	case maps.FrontendNodePort:
		return string(compile.NodePort)
	case maps.FrontendLoadBalancer:
		return string(compile.LoadBalancer)
	case maps.FrontendExternalIP:
		return string(compile.ExternalIP)
	default:
		return fmt.Sprintf("kind %d", kind)
	}
}

// viewAlgorithm names an algorithm.
func viewAlgorithm(algorithm maps.Algorithm) string {
	switch algorithm {
	case maps.AlgorithmRandom:
		return "random"
	case maps.AlgorithmMaglev:
		return "maglev"
	case maps.AlgorithmLeastConnections:
		return "least-connections"
	default:
		return fmt.Sprintf("algorithm %d", algorithm)
	}
}

// sortServices orders services by name, and what they hold by address.
func sortServices(services []serviceView) {
	slices.SortFunc(services, func(a, b serviceView) int { return cmp.Compare(a.Name, b.Name) })
	for i := range services {
		slices.SortFunc(services[i].Frontends, func(a, b frontendView) int { return cmp.Compare(a.Address, b.Address) })
		slices.SortFunc(services[i].Backends, func(a, b backendView) int { return cmp.Compare(a.Address, b.Address) })
	}
}
