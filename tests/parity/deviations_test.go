package parity

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
)

// deviation is something that Weir decides otherwise than kube-proxy on purpose. docs/comparison.md says the same to users, in the same words.
type deviation string

const (
	// Where copies of an endpoint differ, as while a pod moves to another slice, kube-proxy takes one by chance (it goes
	// through a Go map) but for those of this node. Weir takes the one that is not terminating, is ready, is serving.
	bestCopy deviation = "E07: of an endpoint's copies the best counts"

	// The API server refuses such addresses; whoever has them all the same would have pods send to themselves.
	specialAddress deviation = "E09: no backend has an unspecified, loopback, link-local or multicast address"

	// kube-proxy sends there once more, or to itself for ever.
	serviceAddress deviation = "E14: the address of another Service is no backend's"

	// Replies of a backend of this node pass by the edge that translated the request: its client need not be hidden.
	localBackend deviation = "N05: a client outside keeps its address where the backend is local"

	// The same holds for a pod of this node: its replies come back to it through its own veth.
	localClient deviation = "P04: a pod of this node keeps its address"

	// Their own devices say whose they are, whether detectLocalMode knows their addresses or not.
	ownPods deviation = "C03: pods of this node are inside in every mode"

	// The answers have to come back through this node, or the client would not know them.
	remoteBackend deviation = "C03: a client outside does not keep its address where the backend is elsewhere"

	// Its address is the node's, whether it is masqueraded or not.
	nodeClient deviation = "P03: connections of the node itself need no masquerade"

	// "Nobody but these" must not become "everybody" for an address of the other family.
	otherFamily deviation = "L04: source ranges of one family deny the other"

	// Cloud controllers still read it; kube-proxy does not, so that it admits whom the load balancer does not.
	annotation deviation = "L04: the deprecated annotation counts where loadBalancerSourceRanges is empty"

	// One port for two proxiers that do not know of each other: the one that synced last would answer.
	bothFamilies deviation = "Hc2: a health check counts the endpoints of both families"
)

var deviations = []deviation{
	bestCopy, specialAddress, serviceAddress, localBackend, localClient, ownPods, remoteBackend, nodeClient, otherFamily, annotation, bothFamilies,
}

// deviator makes kube-proxy deviate as Weir does, and counts where that made a difference.
type deviator struct {
	slices map[types.NamespacedName]*discoveryv1.EndpointSlice
	copies map[*discoveryv1.EndpointSlice]map[proxy.ServicePortName][]proxy.Endpoint // of each slice by itself
	sorted []*discoveryv1.EndpointSlice                                              // all of them, by name
	vips   map[netip.Addr]map[vip]types.NamespacedName                               // by address: what is taken there, and by whom
	nodes  map[netip.Addr]bool
	seen   map[deviation]int
}

// vip is what a Service takes of an address: a port, or, with port 0, all of it.
type vip struct {
	port     int
	protocol corev1.Protocol
}

// note counts a deviation.
func (d *deviator) note(what deviation) { d.seen[what]++ }

// learn takes in whose addresses are whose.
func (d *deviator) learn(k *kubeProxy) {
	d.copies, d.sorted = d.readAll(d.copies), d.inOrder()
	d.vips, d.nodes = map[netip.Addr]map[vip]types.NamespacedName{}, map[netip.Addr]bool{}
	take := func(text string, what vip, owner types.NamespacedName) {
		address := mustAddr(text)
		if d.vips[address] == nil {
			d.vips[address] = map[vip]types.NamespacedName{}
		}
		d.vips[address][what] = owner
	}
	for _, f := range k.families {
		for name, service := range f.services {
			take(service.ClusterIP().String(), vip{}, name.NamespacedName)
			for _, ip := range slices.Concat(service.ExternalIPs(), service.LoadBalancerVIPs()) {
				take(ip.String(), vip{service.Port(), name.Protocol}, name.NamespacedName)
			}
		}
	}
	for _, node := range k.nodes {
		for _, address := range node.Status.Addresses {
			d.nodes[mustAddr(address.Address)] = true
		}
	}
}

// accept returns the endpoints of a Service port that Weir takes.
func (d *deviator) accept(name proxy.ServicePortName, endpoints []proxy.Endpoint) []proxy.Endpoint {
	var accepted []proxy.Endpoint
	for _, e := range endpoints {
		address := mustAddr(e.IP())
		switch {
		case address.IsUnspecified() || address.IsLoopback() || address.IsLinkLocalUnicast() || address.IsMulticast():
			d.note(specialAddress)
		case d.taken(netip.AddrPortFrom(address, uint16(e.Port())), name):
			d.note(serviceAddress)
		default:
			accepted = append(accepted, d.best(name, e))
		}
	}
	return accepted
}

// taken tells whether an endpoint would be another Service's.
func (d *deviator) taken(endpoint netip.AddrPort, of proxy.ServicePortName) bool {
	if d.nodes[endpoint.Addr()] {
		return false
	}
	there := d.vips[endpoint.Addr()]
	if _, whole := there[vip{}]; whole {
		return true
	}
	owner, taken := there[vip{int(endpoint.Port()), of.Protocol}]
	return taken && owner != of.NamespacedName
}

// best returns the best copy of an endpoint among those of all slices: the copies are compared as kube-proxy reads them, one
// slice at a time.
func (d *deviator) best(name proxy.ServicePortName, chosen proxy.Endpoint) proxy.Endpoint {
	var best proxy.Endpoint
	for _, slice := range d.sorted {
		for _, copy := range d.copies[slice][name] {
			if copy.String() == chosen.String() && (best == nil || rank(copy) > rank(best)) {
				best = copy
			}
		}
	}
	if rank(best) != rank(chosen) {
		d.note(bestCopy)
	}
	return best
}

// inOrder returns the slices in order of their names.
func (d *deviator) inOrder() []*discoveryv1.EndpointSlice {
	byName := func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) }
	return slices.SortedFunc(maps.Values(d.slices), byName)
}

// rank orders the copies of an endpoint.
func rank(e proxy.Endpoint) int {
	rank := 0
	for _, good := range []bool{!e.IsTerminating(), e.IsReady(), e.IsServing(), e.IsLocal()} {
		rank <<= 1
		if good {
			rank++
		}
	}
	return rank
}

// readAll returns what kube-proxy makes of each endpoint of each slice, keeping what is known.
func (d *deviator) readAll(known map[*discoveryv1.EndpointSlice]map[proxy.ServicePortName][]proxy.Endpoint) map[*discoveryv1.EndpointSlice]map[proxy.ServicePortName][]proxy.Endpoint {
	all := map[*discoveryv1.EndpointSlice]map[proxy.ServicePortName][]proxy.Endpoint{}
	for _, slice := range d.slices {
		if all[slice] = known[slice]; all[slice] == nil {
			all[slice] = readCopies(slice)
		}
	}
	return all
}

// readCopies returns what kube-proxy makes of each endpoint of a slice.
func readCopies(slice *discoveryv1.EndpointSlice) map[proxy.ServicePortName][]proxy.Endpoint {
	all := map[proxy.ServicePortName][]proxy.Endpoint{}
	if _, headless := slice.Labels[corev1.IsHeadlessService]; headless {
		return all
	}
	for _, endpoint := range slice.Endpoints {
		alone := *slice
		alone.Endpoints = []discoveryv1.Endpoint{endpoint}
		tracker := proxy.NewEndpointsChangeTracker(corev1.IPFamily(slice.AddressType), hereName, nil, nil)
		tracker.EndpointSliceUpdate(&alone, false)
		endpoints := proxy.EndpointsMap{}
		endpoints.Update(tracker)
		for name, list := range endpoints {
			all[name] = append(all[name], list...)
		}
	}
	return all
}

// ranges returns the source ranges that count in a family, given those that count for kube-proxy.
func (d *deviator) ranges(service *corev1.Service, family corev1.IPFamily, own []*net.IPNet) (ranges []*net.IPNet, restricted bool) {
	texts := service.Spec.LoadBalancerSourceRanges
	if value, annotated := service.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; annotated && len(texts) == 0 {
		d.note(annotation)
		texts = strings.Split(value, ",")
		own = networks(texts, family)
	}
	all := networks(texts, family)
	if len(texts) > 0 && len(all) == 0 {
		d.note(otherFamily)
		return nil, true
	}
	if slices.ContainsFunc(all, proxyutil.IsZeroCIDR) {
		return nil, false
	}
	return own, len(own) > 0
}

// networks returns those CIDRs that are of a family.
func networks(texts []string, family corev1.IPFamily) []*net.IPNet {
	var trimmed []string
	for _, text := range texts {
		trimmed = append(trimmed, strings.TrimSpace(text))
	}
	return proxyutil.MapCIDRsByIPFamily(trimmed)[family]
}

// local tells whether Weir takes for inside what kube-proxy does.
func (d *deviator) local(from origin, local bool) bool {
	if from == fromPod && !local {
		d.note(ownPods)
		return true
	}
	return local
}

// masquerade tells whether Weir masquerades, given that kube-proxy does or not.
func (d *deviator) masquerade(from origin, to destination, masqueraded bool) bool {
	does := from == fromOutside && !to.local
	switch {
	case masqueraded == does:
	case does:
		d.note(remoteBackend)
	case from == fromPod:
		d.note(localClient)
	case from == fromNode:
		d.note(nodeClient)
	default:
		d.note(localBackend)
	}
	return does
}
