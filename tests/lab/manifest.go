package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/weir-lb/weir/controlplane/compile"
)

// ZoneOf names the topology zone that a node is in, as its Node object says.
func ZoneOf(node *Host) string { return "zone-of-" + node.Role }

// Service is a Kubernetes Service of the lab with its EndpointSlices: one TCP and one UDP port of the same number.
type Service struct {
	Name        string
	Number      int                    // tells its addresses and ports from those of other services; 1 to 200
	Kinds       []compile.FrontendKind // besides ClusterIP, which every service has
	Pods        []*Host                // its ready endpoints: pods, or nodes that serve (Options.HostServers)
	Terminating []*Host                // endpoints that are about to go, and still serve
	External    []*Host                // endpoints outside the cluster, without a node

	// Change and ChangeEndpoint, where they are there, make the objects what they are not by themselves.
	Change         func(*corev1.Service)
	ChangeEndpoint func(*Host, *discoveryv1.Endpoint)
}

// AllKinds are the frontend kinds that a service can have besides ClusterIP.
var AllKinds = []compile.FrontendKind{compile.NodePort, compile.LoadBalancer, compile.ExternalIP}

// ServicePort is the port of every lab service's frontends but NodePorts.
const ServicePort = 80

// has reports whether the service has frontends of a kind.
func (s Service) has(kind compile.FrontendKind) bool {
	for _, k := range s.Kinds {
		if k == kind {
			return true
		}
	}
	return kind == compile.ClusterIP
}

// Frontend returns the address clients send to. For a NodePort it is node1's.
func (s Service) Frontend(l *Lab, kind compile.FrontendKind, family compile.Family) netip.AddrPort {
	return s.FrontendOn(l, l.Node1, kind, family)
}

// FrontendOn is Frontend for a NodePort of any node.
func (s Service) FrontendOn(l *Lab, node *Host, kind compile.FrontendKind, family compile.Family) netip.AddrPort {
	if kind == compile.NodePort {
		return netip.AddrPortFrom(l.Outer(node, family), s.NodePort())
	}
	return netip.AddrPortFrom(s.vip(kind, family), ServicePort)
}

// NodePort is the service's port on the nodes.
func (s Service) NodePort() uint16 { return uint16(30000 + s.Number) }

// vips are the networks that frontends' addresses come from.
var vips = map[compile.FrontendKind][2]netip.Prefix{
	compile.ClusterIP:    {netip.MustParsePrefix("10.96.0.0/24"), netip.MustParsePrefix("fd00:10:96::/112")},
	compile.LoadBalancer: {netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:3::/64")},
	compile.ExternalIP:   {netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("2001:db8:4::/64")},
}

// vip is the service's address of a kind.
func (s Service) vip(kind compile.FrontendKind, family compile.Family) netip.Addr {
	networks := vips[kind]
	if family == compile.IPv6 {
		return nth(networks[1], s.Number)
	}
	return nth(networks[0], s.Number)
}

// YAML renders the Service and its slices as one manifest.
func (s Service) YAML() (string, error) {
	return render(s.service(), s.slice(compile.IPv4), s.slice(compile.IPv6))
}

// NodeYAML renders the Node object of a node. An empty zone leaves out the label, no addresses of tunnels the annotation
// of those that take part in DSR.
func NodeYAML(node *Host, zone, tunnelSources string) (string, error) {
	object := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: node.Role},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: node.IPv4.String()},
			{Type: corev1.NodeInternalIP, Address: node.IPv6.String()},
		}},
	}
	if zone != "" {
		object.Labels = map[string]string{corev1.LabelTopologyZone: zone}
	}
	if tunnelSources != "" {
		object.Annotations = map[string]string{compile.AnnotationDSR: tunnelSources}
	}
	return render(object)
}

// service is the Service object.
func (s Service) service() *corev1.Service {
	dualStack := corev1.IPFamilyPolicyRequireDualStack
	clusterIPs := []string{s.vip(compile.ClusterIP, compile.IPv4).String(), s.vip(compile.ClusterIP, compile.IPv6).String()}
	service := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.Name},
		Spec: corev1.ServiceSpec{
			Type:           corev1.ServiceTypeClusterIP,
			ClusterIP:      clusterIPs[0],
			ClusterIPs:     clusterIPs,
			IPFamilies:     []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			IPFamilyPolicy: &dualStack,
			Ports: []corev1.ServicePort{
				{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: ServicePort, TargetPort: intstr.FromInt32(TCPPort)},
				{Name: "udp", Protocol: corev1.ProtocolUDP, Port: ServicePort, TargetPort: intstr.FromInt32(UDPPort)},
			},
		},
	}
	s.addOutsideFrontends(service)
	if s.Change != nil {
		s.Change(service)
	}
	return service
}

// addOutsideFrontends adds the frontends that are not ClusterIPs.
func (s Service) addOutsideFrontends(service *corev1.Service) {
	if s.has(compile.NodePort) {
		service.Spec.Type = corev1.ServiceTypeNodePort
		for i := range service.Spec.Ports {
			service.Spec.Ports[i].NodePort = int32(s.NodePort())
		}
	}
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		if s.has(compile.LoadBalancer) {
			service.Spec.Type = corev1.ServiceTypeLoadBalancer
			service.Status.LoadBalancer.Ingress = append(service.Status.LoadBalancer.Ingress,
				corev1.LoadBalancerIngress{IP: s.vip(compile.LoadBalancer, family).String()})
		}
		if s.has(compile.ExternalIP) {
			service.Spec.ExternalIPs = append(service.Spec.ExternalIPs, s.vip(compile.ExternalIP, family).String())
		}
	}
}

// slice is the EndpointSlice of one family.
func (s Service) slice(family compile.Family) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default",
			Name:      s.Name + "-" + strings.ToLower(family.String()),
			Labels:    map[string]string{discoveryv1.LabelServiceName: s.Name},
		},
		AddressType: discoveryv1.AddressType(family.String()),
		Ports: []discoveryv1.EndpointPort{
			endpointPort("tcp", corev1.ProtocolTCP, TCPPort),
			endpointPort("udp", corev1.ProtocolUDP, UDPPort),
			endpointPort("sctp", corev1.ProtocolSCTP, SCTPPort),
		},
	}
	for _, host := range append(slices.Clone(s.Pods), s.External...) {
		slice.Endpoints = append(slice.Endpoints, s.endpoint(host, family, false))
	}
	for _, host := range s.Terminating {
		slice.Endpoints = append(slice.Endpoints, s.endpoint(host, family, true))
	}
	return slice
}

// endpoint is a host as an endpoint: ready, or serving and about to go.
func (s Service) endpoint(host *Host, family compile.Family, terminating bool) discoveryv1.Endpoint {
	ready, serving := !terminating, true
	endpoint := discoveryv1.Endpoint{
		Addresses:  []string{host.Addr(family).String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
	}
	if host.node != nil {
		endpoint.NodeName = &host.node.Role
	}
	if s.ChangeEndpoint != nil {
		s.ChangeEndpoint(host, &endpoint)
	}
	return endpoint
}

// endpointPort is a port of a slice.
func endpointPort(name string, protocol corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &port}
}

// render writes objects as one YAML file of several documents.
func render(objects ...any) (string, error) {
	var out bytes.Buffer
	for _, object := range objects {
		document, err := yaml.Marshal(object)
		if err != nil {
			return "", fmt.Errorf("render a manifest: %w", err)
		}
		fmt.Fprintf(&out, "---\n%s", document)
	}
	return out.String(), nil
}
