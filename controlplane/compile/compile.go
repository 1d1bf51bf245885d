package compile

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Input is all that one Service compiles from. Compile changes nothing in it.
type Input struct {
	Service *corev1.Service
	Slices  []*discoveryv1.EndpointSlice // of this Service, in any order
	Node    Node

	// ProxyName is the value of the label service.kubernetes.io/service-proxy-name of the Services that
	// are ours. Empty: those without the label (rule S03).
	ProxyName string

	// SNATPorts are no NodePorts: answers to traffic that was sent on come to them. The zero range is none.
	SNATPorts PortRange

	// VIP names the Service that has a frontend where an endpoint is said to be (rule E14). It must not
	// change its mind while Compile runs. Nil: no Service has one.
	VIP func(endpoint netip.AddrPort, protocol Protocol) (owner string, taken bool)
}

// Node is what compiling must know of the node it is for, and of the others.
type Node struct {
	Name string
	Zone string // label topology.kubernetes.io/zone; empty if it has none: zone hints are ignored (rule H03)

	// Addresses are those of every known node, this one included. An endpoint there is never
	// somebody's VIP, whatever an external address says (rule E14).
	Addresses map[netip.Addr]struct{}
	Own       []netip.Addr // those of this node

	// Tunnels are the names of the other nodes that take packets for their endpoints out of tunnels; none where this one
	// sends none.
	Tunnels map[string]struct{}
}

// Result is what a Service asks for.
type Result struct {
	Services []Service // none if the Service is not ours, or has no usable port
	Problems []Problem

	HealthCheck HealthCheck
	Addresses   Addresses

	// Endpoints are the addresses that the slices name, sorted, refused ones included. When one becomes
	// or ceases to be a VIP, the Service has to be compiled again.
	Endpoints []netip.Addr
}

// Compile returns what a Service, with its endpoints, asks for on the node. Anything in it that cannot be
// done is left out and reported; the rest works.
func Compile(in Input) Result {
	problems := &problems{object: fmt.Sprintf("Service %s/%s", in.Service.Namespace, in.Service.Name)}
	if !ours(in.Service, in.ProxyName, problems) {
		return Result{Problems: problems.list, Addresses: addressesOf(in.Service, false)}
	}
	table := collectEndpoints(in, problems)
	addresses := collectAddresses(in.Service, problems)
	readSources(in.Service, addresses, in.Node, problems)
	policy := readPolicy(in.Service, problems)

	result := Result{Endpoints: table.addresses, Addresses: addressesOf(in.Service, true)}
	for _, port := range readPorts(in, problems) {
		table.expect(port, problems)
		for _, family := range []Family{IPv4, IPv6} {
			if addresses[family].clusterIP.IsValid() {
				result.Services = append(result.Services, compilePort(in, port, addresses[family], policy, table)...)
			}
		}
	}
	result.HealthCheck = readHealthCheck(in, table, problems)
	result.Problems = problems.list
	return result
}

// compilePort returns the service of one port in one family; two where a policy may give the ClusterIP
// other backends than the external frontends. Whether it is two is read from the policy, not from the
// lists of the moment: an ID must not come and go with the endpoints.
func compilePort(in Input, port servicePort, addresses *addresses, policy policy, table *endpointTable) []Service {
	family := addresses.family
	endpoints := table.endpoints[portKey{port.name, port.protocol, family}]
	lists := categorise(endpoints, in.Node)
	service := Service{
		ID: ID{
			Namespace: in.Service.Namespace, Name: in.Service.Name,
			Port: port.name, Protocol: port.protocol, Family: family,
		},
		Created:          in.Service.CreationTimestamp.Time,
		Frontends:        []Frontend{{ClusterIP, netip.AddrPortFrom(addresses.clusterIP, port.port)}},
		Inside:           lists.pick(policy.internalLocal),
		Outside:          lists.pick(policy.internalLocal), // a ClusterIP from outside: internalTrafficPolicy, too (rule C01)
		NoEndpoints:      !lists.any,
		InsideAlgorithm:  policy.algorithms.inside,
		OutsideAlgorithm: policy.algorithms.outside,
		AffinityTimeout:  policy.affinity,
		RemovedEndpoints: policy.removed,
	}
	if service.EndsFlows() {
		service.Serving = serving(endpoints)
	}
	external := externalFrontends(port, addresses)
	if len(external) == 0 {
		return []Service{service}
	}
	if !policy.internalLocal && !policy.externalLocal {
		service.Frontends = append(service.Frontends, external...)
		service.Restricted, service.Sources = addresses.sources.restricted, addresses.sources.prefixes
		return []Service{service}
	}
	outer := service
	outer.ID.Scope = ScopeExternal
	outer.Frontends = external
	outer.Restricted, outer.Sources = addresses.sources.restricted, addresses.sources.prefixes
	outer.Inside = lists.cluster // the short circuit of rule P03
	outer.Outside = lists.pick(policy.externalLocal)
	return []Service{service, outer}
}

// externalFrontends lists the frontends of a port other than its ClusterIP, without duplicates.
func externalFrontends(port servicePort, addresses *addresses) []Frontend {
	var frontends []Frontend
	add := func(kind FrontendKind, address netip.Addr, number uint16) {
		frontend := netip.AddrPortFrom(address, number)
		known := func(f Frontend) bool { return f.Address == frontend }
		if !slices.ContainsFunc(frontends, known) {
			frontends = append(frontends, Frontend{kind, frontend})
		}
	}
	if port.nodePort != 0 {
		add(NodePort, addresses.family.unspecified(), port.nodePort)
	}
	for _, address := range addresses.loadBalancer {
		add(LoadBalancer, address, port.port)
	}
	for _, address := range addresses.external {
		add(ExternalIP, address, port.port)
	}
	return frontends
}

// unspecified returns the family's unspecified address.
func (f Family) unspecified() netip.Addr {
	if f == IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// familyOf returns the family of an address.
func familyOf(address netip.Addr) Family {
	if address.Is4() {
		return IPv4
	}
	return IPv6
}

// problems collects what is wrong with one object, each thing once.
type problems struct {
	object string
	list   []Problem
}

func (p *problems) add(reason, format string, args ...any) {
	p.addTo(p.object, reason, format, args...)
}

func (p *problems) addTo(object, reason, format string, args ...any) {
	problem := Problem{Object: object, Reason: reason, Message: fmt.Sprintf(format, args...)}
	if !slices.Contains(p.list, problem) {
		p.list = append(p.list, problem)
	}
}
