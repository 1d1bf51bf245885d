package parity

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// The cluster that histories are about. This node is "here".
const (
	hereName      = "here"
	namespace     = "shop"
	servicesCount = 5
	slicesCount   = 3 // of each Service and family
	endpointPool  = 9 // addresses that endpoints are taken from: few, so that slices often share one
)

var families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// address returns one of many in a network of the family, "10.0.%d.%d" or "fd00::%d:%d".
func address(family corev1.IPFamily, network, number int) string {
	if family == corev1.IPv6Protocol {
		return fmt.Sprintf("fd00::%x:%x", network, number)
	}
	return fmt.Sprintf("10.0.%d.%d", network, number)
}

// The networks of the cluster.
const (
	podNetwork = iota
	clusterIPNetwork
	loadBalancerNetwork
	externalNetwork
	nodeNetwork
	clientNetwork // outside the cluster
)

// chance is true once in n times.
func chance(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// some returns a random part of a list, in a random order.
func some[T any](r *rand.Rand, from ...T) []T {
	from = slices.Clone(from)
	r.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
	return from[:r.IntN(len(from)+1)]
}

func serviceName(number int) string { return fmt.Sprintf("service-%d", number) }

// aspects are the parts of a Service that change by themselves. Together they make a new one.
var aspects = []func(*rand.Rand, int, *corev1.Service){
	setType, setPorts, setFamilies, setPolicies, setLoadBalancer, setSourceRanges, setExternalIPs, setAffinity, setLabels,
}

// randomService returns a Service that the API server would admit.
func randomService(r *rand.Rand, number int) *corev1.Service {
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: serviceName(number)}}
	for _, set := range aspects {
		set(r, number, service)
	}
	admit(service)
	return service
}

// changedService returns a Service that differs in one aspect.
func changedService(r *rand.Rand, number int, service *corev1.Service) *corev1.Service {
	service = service.DeepCopy()
	pick(r, aspects...)(r, number, service)
	if service.Spec.ExternalTrafficPolicy == "" {
		setPolicies(r, number, service)
	}
	admit(service)
	return service
}

func setType(r *rand.Rand, _ int, service *corev1.Service) {
	service.Spec.Type = pick(r, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer)
	if chance(r, 12) {
		service.Spec.Type = corev1.ServiceTypeExternalName
	}
}

func setPorts(r *rand.Rand, number int, service *corev1.Service) {
	all := []corev1.ServicePort{
		{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80},
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
		{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
		{Name: "http", Protocol: corev1.ProtocolUDP, Port: 80},
	}
	if chance(r, 20) {
		all = append(all, corev1.ServicePort{Name: "signal", Protocol: corev1.ProtocolSCTP, Port: 80})
	}
	service.Spec.Ports = some(r, all...)
	if len(service.Spec.Ports) == 0 {
		service.Spec.Ports = []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 8080}}
	}
	for i := range service.Spec.Ports {
		if !chance(r, 5) {
			service.Spec.Ports[i].NodePort = int32(30000 + 10*number + i)
		}
	}
}

func setFamilies(r *rand.Rand, number int, service *corev1.Service) {
	service.Spec.ClusterIPs = nil
	service.Spec.IPFamilies = pick(r, families[:1], families[1:], families, []corev1.IPFamily{families[1], families[0]})
	for _, family := range service.Spec.IPFamilies {
		service.Spec.ClusterIPs = append(service.Spec.ClusterIPs, address(family, clusterIPNetwork, number+1))
	}
	if chance(r, 12) {
		service.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
	}
}

func setPolicies(r *rand.Rand, _ int, service *corev1.Service) {
	service.Spec.InternalTrafficPolicy = pick(r, nil, ptr.To(corev1.ServiceInternalTrafficPolicyCluster), ptr.To(corev1.ServiceInternalTrafficPolicyLocal))
	service.Spec.ExternalTrafficPolicy = pick(r, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
}

func setLoadBalancer(r *rand.Rand, number int, service *corev1.Service) {
	service.Status.LoadBalancer.Ingress = nil
	for i, family := range some(r, families[0], families[0], families[1], families[1]) {
		ingress := corev1.LoadBalancerIngress{IP: address(family, loadBalancerNetwork, 10*number+i)}
		if chance(r, 3) {
			ingress.IPMode = ptr.To(pick(r, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy))
		}
		if chance(r, 10) {
			ingress = corev1.LoadBalancerIngress{Hostname: "shop.example"}
		}
		service.Status.LoadBalancer.Ingress = append(service.Status.LoadBalancer.Ingress, ingress)
	}
}

func setSourceRanges(r *rand.Rand, _ int, service *corev1.Service) {
	service.Spec.LoadBalancerSourceRanges, service.Annotations = nil, nil
	if !chance(r, 3) {
		return
	}
	ranges := some(r, "10.0.5.0/24", " 10.0.5.1/32 ", "10.0.4.0/30", "10.0.0.0/24", "10.0.05.0/25",
		"fd00::5:0/112", "fd00::4:0/120", "fd00::/112", pick(r, "0.0.0.0/0", "::/0", "192.0.2.0/24", "2001:db8::/32"))
	if len(ranges) > 0 && chance(r, 4) {
		service.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: strings.Join(ranges, ",")}
		return
	}
	service.Spec.LoadBalancerSourceRanges = ranges
}

func setExternalIPs(r *rand.Rand, number int, service *corev1.Service) {
	service.Spec.ExternalIPs = nil
	for _, family := range some(r, families...) {
		service.Spec.ExternalIPs = append(service.Spec.ExternalIPs, address(family, externalNetwork, number+1))
	}
}

func setAffinity(r *rand.Rand, _ int, service *corev1.Service) {
	service.Spec.SessionAffinity, service.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	if chance(r, 3) {
		service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		service.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
			ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To(pick(r, int32(1), 600, 10800, 86400))},
		}
	}
}

func setLabels(r *rand.Rand, _ int, service *corev1.Service) {
	service.Labels = map[string]string{}
	if chance(r, 15) {
		service.Labels["service.kubernetes.io/service-proxy-name"] = pick(r, "another", "")
	}
	if chance(r, 15) {
		service.Labels[corev1.IsHeadlessService] = ""
	}
}

// admit makes the aspects of a Service agree, as the API server sees to.
func admit(service *corev1.Service) {
	spec := &service.Spec
	spec.ClusterIP, spec.HealthCheckNodePort = "", 0
	if spec.Type == corev1.ServiceTypeExternalName {
		spec.ExternalName = "shop.example"
		return
	}
	if len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	if spec.Type == corev1.ServiceTypeClusterIP {
		for i := range spec.Ports {
			spec.Ports[i].NodePort = 0
		}
		if len(spec.ExternalIPs) == 0 {
			spec.ExternalTrafficPolicy = ""
		}
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer && spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		spec.HealthCheckNodePort = 32000
	}
}

// randomSlice returns an EndpointSlice of a Service.
func randomSlice(r *rand.Rand, name, owner string, family corev1.IPFamily) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: owner}},
		AddressType: discoveryv1.AddressType(family),
		Ports:       randomSlicePorts(r),
	}
	switch r.IntN(40) {
	case 0:
		slice.Labels[corev1.IsHeadlessService] = ""
	case 1:
		delete(slice.Labels, discoveryv1.LabelServiceName)
	case 2:
		slice.AddressType = discoveryv1.AddressTypeFQDN
	}
	hints := randomHinting(r)
	for range r.IntN(6) {
		slice.Endpoints = append(slice.Endpoints, randomEndpoint(r, family, hints))
	}
	return slice
}

func randomSlicePorts(r *rand.Rand) []discoveryv1.EndpointPort {
	var ports []discoveryv1.EndpointPort
	for _, p := range []struct {
		name     string
		protocol corev1.Protocol
	}{{"", corev1.ProtocolTCP}, {"http", corev1.ProtocolTCP}, {"dns", corev1.ProtocolUDP}, {"dns-tcp", corev1.ProtocolTCP}, {"http", corev1.ProtocolUDP}} {
		if chance(r, 10) {
			continue
		}
		port := discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.protocol, Port: ptr.To(pick(r, int32(8080), 8080, 8080, 9090))}
		switch r.IntN(40) {
		case 0:
			port.Name = nil
		case 1:
			port.Port = nil
		}
		ports = append(ports, port)
	}
	return ports
}

// randomHinting returns what gives the endpoints of a slice their hints: mostly all of them or none, as a controller would.
func randomHinting(r *rand.Rand) func(*discoveryv1.Endpoint) {
	zones, nodes := chance(r, 2), chance(r, 4)
	return func(endpoint *discoveryv1.Endpoint) {
		if chance(r, 15) || !zones && !nodes {
			return
		}
		endpoint.Hints = &discoveryv1.EndpointHints{}
		for _, zone := range some(r, "east", "west") {
			if zones {
				endpoint.Hints.ForZones = append(endpoint.Hints.ForZones, discoveryv1.ForZone{Name: zone})
			}
		}
		if nodes {
			endpoint.Hints.ForNodes = []discoveryv1.ForNode{{Name: pick(r, hereName, hereName, "there")}}
		}
	}
}

func randomEndpoint(r *rand.Rand, family corev1.IPFamily, hint func(*discoveryv1.Endpoint)) discoveryv1.Endpoint {
	number := r.IntN(endpointPool)
	endpoint := discoveryv1.Endpoint{
		Addresses:  []string{address(family, podNetwork, number+1)},
		Conditions: randomConditions(r),
		NodeName:   pick(r, ptr.To(hereName), ptr.To("there"), ptr.To("there")),
	}
	if !chance(r, 8) { // most addresses are always of the same node
		endpoint.NodeName = []*string{ptr.To(hereName), ptr.To("there"), nil}[number%3]
	}
	if chance(r, 25) {
		endpoint.Addresses[0] = unusualAddress(r, family)
	}
	if chance(r, 10) {
		endpoint.Addresses = append(endpoint.Addresses, address(family, podNetwork, 200))
	}
	hint(&endpoint)
	return endpoint
}

// unusualAddress returns where no pod is: a node, another Service, or what no backend may have.
func unusualAddress(r *rand.Rand, family corev1.IPFamily) string {
	special := []string{"127.0.0.1", "169.254.1.1", "224.0.0.9", "0.0.0.0", "010.00.0.3"}
	if family == corev1.IPv6Protocol {
		special = []string{"::1", "fe80::1", "ff02::9", "::", "FD00:0::0:0003"}
	}
	other := r.IntN(servicesCount)
	return pick(r, append(special, address(family, nodeNetwork, 1+r.IntN(2)), address(family, clusterIPNetwork, other+1),
		address(family, externalNetwork, other+1))...)
}

func randomConditions(r *rand.Rand) discoveryv1.EndpointConditions {
	yes, no := ptr.To(true), ptr.To(false)
	return pick(r,
		discoveryv1.EndpointConditions{},
		discoveryv1.EndpointConditions{Ready: yes},
		discoveryv1.EndpointConditions{Ready: yes, Serving: yes, Terminating: no},
		discoveryv1.EndpointConditions{Ready: no, Serving: no, Terminating: no},
		discoveryv1.EndpointConditions{Ready: no, Serving: yes, Terminating: yes},
		discoveryv1.EndpointConditions{Ready: no, Serving: no, Terminating: yes},
		discoveryv1.EndpointConditions{Ready: no, Terminating: yes},
		discoveryv1.EndpointConditions{Ready: yes, Serving: yes, Terminating: yes}, // publishNotReadyAddresses
	)
}

// randomNode returns this node or the other one.
func randomNode(r *rand.Rand, name string, number int) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	if zone := pick(r, "east", "west", ""); zone != "" {
		node.Labels[corev1.LabelTopologyZone] = zone
	}
	if name == hereName {
		node.Spec.PodCIDR, node.Spec.PodCIDRs = podCIDRs[0], podCIDRs
	}
	for _, family := range families {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{
			Type: corev1.NodeInternalIP, Address: address(family, nodeNetwork, number),
		})
	}
	return node
}

func keyOf(object metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}
}

func mustAddr(text string) netip.Addr { return netip.MustParseAddr(text).Unmap() }
