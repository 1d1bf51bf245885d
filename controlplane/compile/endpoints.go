package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// portKey names the endpoints of one Service port in one family. A targetPort is never resolved here: the
// slices say the number, which may differ between them (rule S10).
type portKey struct {
	name     string
	protocol Protocol
	family   Family
}

// endpoint is one place where a port is served.
type endpoint struct {
	address     netip.AddrPort
	ready       bool
	serving     bool
	terminating bool
	local       bool
	tunnel      bool
	zoneHints   []discoveryv1.ForZone
	nodeHints   []discoveryv1.ForNode
	weight      uint32 // 0 with all others, where no endpoint of the Service has been given one
}

// endpointTable holds the endpoints of a Service, of each port sorted by address and free of duplicates.
type endpointTable struct {
	endpoints map[portKey][]endpoint
	weights   weights
	ports     map[portIdentity]bool // those that some slice has, whatever its family
	addresses []netip.Addr          // all that were named, sorted
}

// collectEndpoints reads all slices of a Service (rules E01 to E09).
func collectEndpoints(in Input, problems *problems) *endpointTable {
	table := &endpointTable{endpoints: map[portKey][]endpoint{}, weights: readWeights(in.Service, in.Slices, problems), ports: map[portIdentity]bool{}}
	for _, slice := range sorted(in.Slices) {
		reader := sliceReader{in: in, slice: slice, table: table}
		reader.read(problems)
		reader.report(problems)
	}
	for key, list := range table.endpoints {
		table.endpoints[key] = dedupe(list)
	}
	slices.SortFunc(table.addresses, netip.Addr.Compare)
	table.addresses = fitting(slices.Compact(table.addresses))
	return table
}

// fitting returns a list without room for more: it is kept.
func fitting[E any](list []E) []E {
	if len(list) == cap(list) {
		return list
	}
	return slices.Clone(list)
}

// expect reports a port that no slice has although they have others: its name is misspelt on one side.
func (t *endpointTable) expect(port servicePort, problems *problems) {
	if len(t.ports) > 0 && !t.ports[portIdentity{port.name, port.protocol}] {
		problems.add("EndpointPortMissing", "no EndpointSlice has a port named %q with protocol %s: port %d has no endpoints; the names must agree",
			port.name, port.protocol, port.port)
	}
}

// sorted returns slices in order of their names, so that problems come in a stable order.
func sorted(list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *discoveryv1.EndpointSlice) int {
		return strings.Compare(a.Name, b.Name)
	})
	return list
}

// dedupe sorts endpoints by address and keeps one of each. Where copies differ, as while a pod moves from
// one slice to another, the one that is not terminating counts (rule E07).
func dedupe(list []endpoint) []endpoint {
	slices.SortStableFunc(list, func(a, b endpoint) int {
		if order := a.address.Compare(b.address); order != 0 {
			return order
		}
		if a.better(b) {
			return -1
		}
		if b.better(a) {
			return 1
		}
		return 0
	})
	return slices.CompactFunc(list, func(a, b endpoint) bool { return a.address == b.address })
}

// better tells which of two copies of an endpoint is believed.
func (e endpoint) better(other endpoint) bool {
	switch {
	case e.terminating != other.terminating:
		return other.terminating
	case e.ready != other.ready:
		return e.ready
	case e.serving != other.serving:
		return e.serving
	default:
		return e.local && !other.local
	}
}

// sliceReader reads one EndpointSlice into a table.
type sliceReader struct {
	in       Input
	slice    *discoveryv1.EndpointSlice
	table    *endpointTable
	family   Family
	weight   uint32 // of those endpoints for which nothing else is said
	refusals []refusal
}

// refusal is a reason for which endpoints of a slice are left out. Thousands may share one.
type refusal struct {
	why   string
	first string
	count int
}

// read adds the slice's endpoints to the table.
func (r *sliceReader) read(problems *problems) {
	if _, headless := r.slice.Labels[labelHeadless]; headless { // rule S04
		return
	}
	switch r.slice.AddressType { // rule E01
	case discoveryv1.AddressTypeIPv4:
		r.family = IPv4
	case discoveryv1.AddressTypeIPv6:
		r.family = IPv6
	default:
		return
	}
	r.weight = r.table.weights.ofSlice(r.slice, problems)
	endpoints := r.readEndpoints()
	for _, port := range r.slice.Ports {
		r.addPort(port, endpoints)
	}
}

// readEndpoints returns the slice's usable endpoints, with port 0.
func (r *sliceReader) readEndpoints() []endpoint {
	endpoints := make([]endpoint, 0, len(r.slice.Endpoints))
	r.table.addresses = slices.Grow(r.table.addresses, len(r.slice.Endpoints))
	for i := range r.slice.Endpoints {
		source := &r.slice.Endpoints[i]
		if len(source.Addresses) == 0 {
			r.refuse("it has no address", fmt.Sprintf("endpoint %d of the slice", i+1))
			continue
		}
		address, usable := r.readAddress(source.Addresses[0]) // rule E02
		if usable {
			endpoints = append(endpoints, r.readEndpoint(source, address))
		}
	}
	return endpoints
}

// readAddress parses an endpoint's address and refuses those that cannot be a backend's (rules E01, E09).
func (r *sliceReader) readAddress(text string) (address netip.Addr, usable bool) {
	address, valid := parseAddress(text)
	switch why := special(address); {
	case !valid:
		r.refuse("not an IP address", fmt.Sprintf("endpoint %q", text))
	case familyOf(address) != r.family:
		r.refuse(fmt.Sprintf("not an %s address, as the slice's addressType says", r.family), "endpoint "+text)
	case why != "":
		r.refuse(why+" addresses cannot be a backend's", "endpoint "+text)
	default:
		return address, true
	}
	return address, false
}

// readEndpoint reads conditions, place and hints (rules E04 to E06).
func (r *sliceReader) readEndpoint(source *discoveryv1.Endpoint, address netip.Addr) endpoint {
	r.table.addresses = append(r.table.addresses, address)
	conditions, node := source.Conditions, ptr.Deref(source.NodeName, "")
	_, tunnel := r.in.Node.Tunnels[node]
	e := endpoint{
		address:     netip.AddrPortFrom(address, 0),
		ready:       conditions.Ready == nil || *conditions.Ready,
		serving:     conditions.Serving == nil || *conditions.Serving,
		terminating: conditions.Terminating != nil && *conditions.Terminating,
		local:       node != "" && node == r.in.Node.Name,
	}
	e.tunnel = tunnel && node != "" && !e.local
	e.weight = r.table.weights.of(address, r.weight)
	if source.Hints != nil {
		e.zoneHints, e.nodeHints = source.Hints.ForZones, source.Hints.ForNodes
	}
	return e
}

// addPort adds the slice's endpoints under one of its ports (rules E03, E14).
func (r *sliceReader) addPort(port discoveryv1.EndpointPort, endpoints []endpoint) {
	key, number, usable := r.readPort(port)
	if !usable {
		return
	}
	r.table.ports[portIdentity{key.name, key.protocol}] = true
	list := slices.Grow(r.table.endpoints[key], len(endpoints))
	for _, e := range endpoints {
		e.address = netip.AddrPortFrom(e.address.Addr(), number)
		if owner, taken := r.takenBy(e.address, key.protocol); taken {
			r.refuse("an address of Service "+owner+", where no backend is; name its pods instead", "endpoint "+e.address.String())
			continue
		}
		list = append(list, e)
	}
	r.table.endpoints[key] = list
}

// readPort checks one port of the slice.
func (r *sliceReader) readPort(port discoveryv1.EndpointPort) (key portKey, number uint16, usable bool) {
	key = portKey{protocol: TCP, family: r.family}
	if port.Protocol != nil {
		key.protocol = parseProtocol(string(*port.Protocol))
	}
	if port.Name == nil || key.protocol == 0 {
		r.refuse("it needs a name, and the protocol TCP, UDP or SCTP", "a port of the slice")
		return key, 0, false
	}
	key.name = *port.Name
	if port.Port == nil || *port.Port < 1 || *port.Port > 65535 {
		r.refuse("it needs a number between 1 and 65535", fmt.Sprintf("port %q", key.name))
		return key, 0, false
	}
	return key, uint16(*port.Port), true
}

// takenBy tells whether an endpoint would be a Service's frontend, which no backend can be (rule E14).
func (r *sliceReader) takenBy(address netip.AddrPort, protocol Protocol) (owner string, taken bool) {
	if r.in.VIP == nil {
		return "", false
	}
	if _, node := r.in.Node.Addresses[address.Addr()]; node {
		return "", false
	}
	return r.in.VIP(address, protocol)
}

func (r *sliceReader) refuse(why, what string) {
	for i := range r.refusals {
		if r.refusals[i].why == why {
			r.refusals[i].count++
			return
		}
	}
	r.refusals = append(r.refusals, refusal{why: why, first: what, count: 1})
}

// report turns the refusals into problems of the slice, or of the Endpoints it was made from.
func (r *sliceReader) report(problems *problems) {
	for _, refusal := range r.refusals {
		others := ""
		if refusal.count > 1 {
			others = fmt.Sprintf(" (and %d more)", refusal.count-1)
		}
		problems.addTo(sliceObject(r.slice), "EndpointRefused", "%s refused%s: %s", refusal.first, others, refusal.why)
	}
}

// sliceObject names a slice for a problem; a slice mirrored from Endpoints goes by their name.
func sliceObject(slice *discoveryv1.EndpointSlice) string {
	for _, owner := range slice.OwnerReferences {
		if owner.Kind == "Endpoints" {
			return fmt.Sprintf("Endpoints %s/%s", slice.Namespace, owner.Name)
		}
	}
	return fmt.Sprintf("EndpointSlice %s/%s", slice.Namespace, slice.Name)
}
