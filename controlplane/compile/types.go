// Package compile turns Kubernetes objects into the frontends and backends they ask for. It is a pure
// function: all Service semantics live here and only here (../../docs/semantics.md).
package compile

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weir-lb/weir/maps"
)

// Family is an IP address family.
type Family uint8

// The address families, as they are named in the Kubernetes API.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns the API's name of the family.
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols a Service port can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the API's name of the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	default:
		return fmt.Sprintf("protocol %d", uint8(p))
	}
}

// PortRange is a range of ports with both ends included. The zero one is empty.
type PortRange struct{ First, Last uint16 }

// Contains tells whether a port is in the range.
func (r PortRange) Contains(port uint16) bool { return port != 0 && r.First <= port && port <= r.Last }

// String returns "first-last".
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Scope says which frontends of a Service port a service stands for.
type Scope string

// The scopes of a service.
const (
	ScopeAll      Scope = ""         // every frontend; only the ClusterIP where another service has the external ones
	ScopeExternal Scope = "external" // NodePort, LoadBalancer and external addresses, whose policy is another
)

// ID identifies a service: one port of one Service in one address family (rule S08). A port whose policies
// give its ClusterIP and its external addresses different backends is two services, told apart by Scope.
type ID struct {
	Namespace string
	Name      string
	Port      string // the port's name; empty for a single unnamed port
	Protocol  Protocol
	Family    Family
	Scope     Scope
}

// String returns "namespace/name:port/protocol/family", and "/scope" where there is one.
// maps.ServiceName carries it.
func (id ID) String() string {
	s := fmt.Sprintf("%s/%s:%s/%s/%s", id.Namespace, id.Name, id.Port, id.Protocol, id.Family)
	if id.Scope != ScopeAll {
		s += "/" + string(id.Scope)
	}
	return s
}

// Group is the same number for all services of one Service port in one family, and of no other port: session
// affinity goes by it (rule A02). It is never 0.
func (id ID) Group() uint64 {
	id.Scope = ScopeAll
	hash := fnv.New64a()
	hash.Write([]byte(id.String()))
	return max(hash.Sum64(), 1)
}

// ParseID is the reverse of ID.String.
func ParseID(s string) (ID, error) {
	bad := fmt.Errorf("service id %q is not namespace/name:port/protocol/family", s)
	fields := strings.Split(s, "/")
	if len(fields) != 4 && len(fields) != 5 {
		return ID{}, bad
	}
	name, port, found := strings.Cut(fields[1], ":")
	protocol := parseProtocol(fields[2])
	if !found || protocol == 0 {
		return ID{}, bad
	}
	id := ID{Namespace: fields[0], Name: name, Port: port, Protocol: protocol}
	if len(fields) == 5 {
		id.Scope = Scope(fields[4])
	}
	switch fields[3] {
	case IPv4.String():
		id.Family = IPv4
	case IPv6.String():
		id.Family = IPv6
	default:
		return ID{}, bad
	}
	return id, nil
}

// Compare orders IDs by namespace, name, port, protocol, family and scope.
func (id ID) Compare(other ID) int {
	return cmp.Or(
		strings.Compare(id.Namespace, other.Namespace),
		strings.Compare(id.Name, other.Name),
		strings.Compare(id.Port, other.Port),
		cmp.Compare(id.Protocol, other.Protocol),
		cmp.Compare(id.Family, other.Family),
		strings.Compare(string(id.Scope), string(other.Scope)),
	)
}

// parseProtocol returns the protocol of an API name, TCP for none, 0 for an unknown one.
func parseProtocol(name string) Protocol {
	switch name {
	case "", "TCP":
		return TCP
	case "UDP":
		return UDP
	case "SCTP":
		return SCTP
	default:
		return 0
	}
}

// FrontendKind says what made a frontend.
type FrontendKind string

// The kinds of frontend.
const (
	ClusterIP    FrontendKind = "ClusterIP"
	NodePort     FrontendKind = "NodePort"
	LoadBalancer FrontendKind = "LoadBalancer"
	ExternalIP   FrontendKind = "ExternalIP"
)

// Frontend is an address and port clients send to. A NodePort's address is the family's unspecified one.
type Frontend struct {
	Kind    FrontendKind
	Address netip.AddrPort
}

// Backend is an endpoint a service sends to.
type Backend struct {
	Address     netip.AddrPort
	Local       bool   // on this node (rule E05)
	Terminating bool   // serving, but about to go (rule E11)
	Tunnel      bool   // on another node, which takes its packets out of tunnels (DSR)
	Weight      uint32 // its share of new flows, relative to the others'; those of one list may be equal, all 0 included
}

// Service is what the maps shall hold for one ID. Backends are sorted by address and free of duplicates.
type Service struct {
	ID               ID
	Created          time.Time // of the Service object: the oldest keeps a frontend that two claim
	Frontends        []Frontend
	Inside           []Backend // for traffic of this node's pods and processes
	Outside          []Backend // for traffic that arrives at the node edge
	NoEndpoints      bool      // none in the whole cluster: reject, whatever the policy (rule P06)
	InsideAlgorithm  maps.Algorithm
	OutsideAlgorithm maps.Algorithm
	AffinityTimeout  time.Duration // 0 is no affinity; else the client keeps its backend for so long (rule A01)
	RemovedEndpoints RemovedEndpoints
	Serving          []netip.AddrPort // all endpoints that still answer, sorted; of services whose flows end with their endpoint
	Restricted       bool             // of its clients, only Sources may use its LoadBalancer frontends (rule L04)
	Sources          []netip.Prefix
}

// Equal tells whether two services ask for the same in the maps.
func (s Service) Equal(other Service) bool {
	return s.ID == other.ID && s.Created.Equal(other.Created) &&
		s.NoEndpoints == other.NoEndpoints && s.AffinityTimeout == other.AffinityTimeout && s.RemovedEndpoints == other.RemovedEndpoints &&
		s.InsideAlgorithm == other.InsideAlgorithm && s.OutsideAlgorithm == other.OutsideAlgorithm &&
		s.Restricted == other.Restricted && slices.Equal(s.Sources, other.Sources) &&
		slices.Equal(s.Frontends, other.Frontends) && slices.Equal(s.Serving, other.Serving) &&
		slices.Equal(s.Inside, other.Inside) && slices.Equal(s.Outside, other.Outside)
}

// EndsFlows tells whether flows, and sockets, end when their backend is none of Serving any more: those of UDP do (rule
// D01), those of TCP where the Service asks for it.
func (s Service) EndsFlows() bool { return s.ID.Protocol == UDP || s.RemovedEndpoints.End }

// Problem is something an object asks for that is refused or set aside; the rest of the object works.
type Problem struct {
	Object  string // "Service default/web", "EndpointSlice default/web-x7k2p"
	Reason  string // CamelCase, as in an Event: "EndpointRefused"
	Message string // one sentence: what, why, and what to do
}
