package parity

import (
	"fmt"
	"net"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
)

// kubeProxy is kube-proxy up to the rules that it writes: its change trackers, its service and endpoints maps, and its choice
// of endpoints. What the rules of its nftables mode then do is restated in answer, from pkg/proxy/nftables/proxier.go.
type kubeProxy struct {
	selector labels.Selector // of the informers (cmd/kube-proxy/app/server.go)
	services map[types.NamespacedName]*corev1.Service
	nodes    map[string]*corev1.Node
	families map[corev1.IPFamily]*familyProxy
	deviator *deviator
}

// familyProxy is the proxier of one family.
type familyProxy struct {
	detector        proxyutil.LocalTrafficDetector
	serviceChanges  *proxy.ServiceChangeTracker
	endpointChanges *proxy.EndpointsChangeTracker
	services        proxy.ServicePortMap
	endpoints       proxy.EndpointsMap
}

func newKubeProxy(mode localMode) (*kubeProxy, error) {
	selector := labels.NewSelector()
	for _, label := range []string{"service.kubernetes.io/service-proxy-name", corev1.IsHeadlessService} {
		absent, err := labels.NewRequirement(label, selection.DoesNotExist, nil)
		if err != nil {
			return nil, err
		}
		selector = selector.Add(*absent)
	}
	k := &kubeProxy{
		selector: selector, services: map[types.NamespacedName]*corev1.Service{}, nodes: map[string]*corev1.Node{},
		families: map[corev1.IPFamily]*familyProxy{},
		deviator: &deviator{slices: map[types.NamespacedName]*discoveryv1.EndpointSlice{}, seen: map[deviation]int{}},
	}
	detectors := mode.detectors()
	for _, family := range families {
		k.families[family] = &familyProxy{
			detector:        detectors[family],
			serviceChanges:  proxy.NewServiceChangeTracker(family, nil, nil),
			endpointChanges: proxy.NewEndpointsChangeTracker(family, hereName, nil, nil),
			services:        proxy.ServicePortMap{},
			endpoints:       proxy.EndpointsMap{},
		}
	}
	return k, nil
}

// setService tells the trackers of a change, as an informer does that selects by labels; nil is a removal.
func (k *kubeProxy) setService(key types.NamespacedName, service *corev1.Service) {
	if service != nil && !k.selector.Matches(labels.Set(service.Labels)) {
		service = nil
	}
	for _, family := range k.families {
		family.serviceChanges.Update(k.services[key], service)
	}
	if service == nil {
		delete(k.services, key)
		return
	}
	k.services[key] = service
}

// setSlice tells the trackers of a change of a slice; nil is a removal.
func (k *kubeProxy) setSlice(key types.NamespacedName, now *discoveryv1.EndpointSlice) {
	old := k.deviator.slices[key]
	if k.deviator.slices[key] = now; now == nil {
		delete(k.deviator.slices, key)
	}
	headless := func(object metav1.Object) bool {
		_, is := object.GetLabels()[corev1.IsHeadlessService]
		return is
	}
	for _, family := range k.families {
		switch {
		case now != nil && !headless(now):
			family.endpointChanges.EndpointSliceUpdate(now, false)
		case old != nil && !headless(old):
			family.endpointChanges.EndpointSliceUpdate(old, true)
		}
	}
}

// sync takes in the changes, and returns what becomes of connections.
func (k *kubeProxy) sync() outcome {
	for _, f := range k.families {
		f.services.Update(f.serviceChanges)
		f.endpoints.Update(f.endpointChanges)
	}
	k.deviator.learn(k)
	outcome := newOutcome()
	local := map[types.NamespacedName]int{}
	checks := map[types.NamespacedName]uint16{}
	for _, family := range families {
		f := k.families[family]
		accepted := proxy.EndpointsMap{}
		for name, endpoints := range f.endpoints {
			accepted[name] = k.deviator.accept(name, endpoints)
		}
		for name, service := range f.services {
			k.ask(port{
				family: family, object: k.services[name.NamespacedName], service: service, detector: f.detector, deviator: k.deviator,
			}, accepted[name], outcome)
		}
		for service, number := range accepted.LocalReadyEndpoints() {
			if local[service] > 0 {
				k.deviator.note(bothFamilies)
			}
			local[service] += number
		}
		for service, port := range f.services.HealthCheckNodePorts() {
			checks[service] = port
		}
	}
	for service, port := range checks {
		outcome.healthChecks[service.String()] = fmt.Sprintf("port %d, %d local", port, local[service])
	}
	return outcome
}

// port is a Service port with its endpoints sorted out.
type port struct {
	family         corev1.IPFamily
	object         *corev1.Service
	service        proxy.ServicePort
	detector       proxyutil.LocalTrafficDetector
	deviator       *deviator
	cluster, local []destination
	any            bool
	nodeIP         net.IP
}

// ask asks for every frontend of a Service port.
func (k *kubeProxy) ask(p port, endpoints []proxy.Endpoint, outcome outcome) {
	node, service := k.nodes[hereName], p.service
	cluster, local, _, hasAny := proxy.CategorizeEndpoints(endpoints, service, hereName, node.Labels)
	p.cluster, p.local, p.any = destinations(cluster), destinations(local), hasAny
	for _, address := range node.Status.Addresses {
		if ip := net.ParseIP(address.Address); (ip.To4() != nil) == (p.family == corev1.IPv4Protocol) {
			p.nodeIP = ip
		}
	}
	each := func(address string, number int, answer func(origin, client) answer) {
		for _, from := range origins {
			for _, c := range from.clients(p.family) {
				q := question{p.family, service.Protocol(), address, number, from, c}
				outcome.answers[q] = answer(from, c)
			}
		}
	}
	each(service.ClusterIP().String(), service.Port(), p.internal)
	for _, ip := range service.ExternalIPs() {
		each(ip.String(), service.Port(), p.external)
	}
	for _, ip := range service.LoadBalancerVIPs() {
		each(ip.String(), service.Port(), p.loadBalancer)
	}
	if service.NodePort() != 0 {
		each("NodePort", service.NodePort(), p.external)
	}
}

func destinations(endpoints []proxy.Endpoint) []destination {
	var list []destination
	for _, e := range endpoints {
		list = append(list, destination{address: netip.MustParseAddrPort(e.String()), local: e.IsLocal()})
	}
	return list
}

// internal: the ClusterIP. Whoever is not local is masqueraded, if it is known who is.
func (p port) internal(from origin, c client) answer {
	masqueraded := p.detector.IsImplemented() && matches(p.detector.IfNotLocalNFT(), c)
	if p.service.InternalPolicyLocal() {
		return p.to(p.local, from, masqueraded)
	}
	return p.to(p.cluster, from, masqueraded)
}

// isLocal tells whether a rule for local pods matches.
func (p port) isLocal(from origin, c client) bool {
	return p.deviator.local(from, p.detector.IsImplemented() && matches(p.detector.IfLocalNFT(), c))
}

// external: the chain that NodePorts, external IPs and load balancer IPs have in common.
func (p port) external(from origin, c client) answer {
	switch {
	case !p.service.ExternalPolicyLocal():
		return p.to(p.cluster, from, true)
	case p.isLocal(from, c): // "short-circuit pod traffic"
		return p.to(p.cluster, from, false)
	case from == fromNode: // "masquerade local traffic", "short-circuit local traffic"
		return p.to(p.cluster, from, true)
	default:
		return p.to(p.local, from, false)
	}
}

// loadBalancer: source ranges come before all else.
func (p port) loadBalancer(from origin, c client) answer {
	ranges, restricted := p.deviator.ranges(p.object, p.family, p.service.LoadBalancerSourceRanges())
	admitted := !restricted
	for _, cidr := range ranges {
		admitted = admitted || cidr.Contains(c.source.AsSlice())
		if cidr.Contains(p.nodeIP) { // "allowFromNode"
			for _, vip := range p.service.LoadBalancerVIPs() {
				admitted = admitted || vip.Equal(c.source.AsSlice())
			}
		}
	}
	if !admitted {
		return answer{verdict: dropped}
	}
	return p.external(from, c)
}

// to sends to a list of endpoints. Where there are none, it is rejected if there are none in the cluster, else dropped.
func (p port) to(list []destination, from origin, masqueraded bool) answer {
	switch {
	case !p.any:
		return answer{verdict: rejected}
	case len(list) == 0:
		return answer{verdict: dropped}
	}
	a := answer{verdict: forwarded}
	for _, d := range list {
		d.masqueraded = p.deviator.masquerade(from, d, masqueraded)
		a.endpoints = append(a.endpoints, d)
	}
	if p.service.SessionAffinityType() == corev1.ServiceAffinityClientIP {
		a.affinity = p.service.StickyMaxAgeSeconds()
	}
	return a
}
