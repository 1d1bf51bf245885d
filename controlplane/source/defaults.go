package source

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	netutils "k8s.io/utils/net"
	"k8s.io/utils/ptr"
)

// setDefaults fills in what an API server would have filled in.
func setDefaults(object metav1.Object) {
	switch o := object.(type) {
	case *corev1.Service:
		setServiceDefaults(o)
	case *endpoints:
		for i := range o.Subsets {
			for j := range o.Subsets[i].Ports {
				setDefault(&o.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
			}
		}
	case *discoveryv1.EndpointSlice:
		for i := range o.Ports {
			port := &o.Ports[i]
			setDefault(&port.Name, ptr.To(""))
			setDefault(&port.Protocol, ptr.To(corev1.ProtocolTCP))
		}
	case *corev1.Node:
		o.Namespace = ""
		return
	case *corev1.Namespace:
		o.Namespace = ""
		return
	case *networkingv1.ServiceCIDR:
		o.Namespace = ""
		return
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(metav1.NamespaceDefault)
	}
}

// setDefault sets a value that has not been given.
func setDefault[T comparable](value *T, standard T) {
	var none T
	if *value == none {
		*value = standard
	}
}

func setServiceDefaults(s *corev1.Service) {
	spec := &s.Spec
	setDefault(&spec.Type, corev1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		port := &spec.Ports[i]
		setDefault(&port.Protocol, corev1.ProtocolTCP)
		setDefault(&port.TargetPort, intstr.FromInt32(port.Port))
	}
	setDefault(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		setAffinityDefaults(spec)
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	setDefault(&spec.InternalTrafficPolicy, ptr.To(corev1.ServiceInternalTrafficPolicyCluster))
	if spec.Type != corev1.ServiceTypeClusterIP || len(spec.ExternalIPs) > 0 {
		setDefault(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		setDefault(&spec.AllocateLoadBalancerNodePorts, ptr.To(true))
		setIngressDefaults(s.Status.LoadBalancer.Ingress)
	}
	setFamilyDefaults(spec)
}

func setAffinityDefaults(spec *corev1.ServiceSpec) {
	setDefault(&spec.SessionAffinityConfig, &corev1.SessionAffinityConfig{})
	setDefault(&spec.SessionAffinityConfig.ClientIP, &corev1.ClientIPConfig{})
	setDefault(&spec.SessionAffinityConfig.ClientIP.TimeoutSeconds, ptr.To(corev1.DefaultClientIPServiceAffinitySeconds))
}

func setIngressDefaults(ingress []corev1.LoadBalancerIngress) {
	for i := range ingress {
		if ingress[i].IP != "" {
			setDefault(&ingress[i].IPMode, ptr.To(corev1.LoadBalancerIPModeVIP))
		}
	}
}

// setFamilyDefaults makes clusterIP, clusterIPs and the families agree where only one is given.
func setFamilyDefaults(spec *corev1.ServiceSpec) {
	if len(spec.ClusterIPs) == 0 && spec.ClusterIP != "" {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if len(spec.ClusterIPs) > 0 {
		setDefault(&spec.ClusterIP, spec.ClusterIPs[0])
	}
	if len(spec.IPFamilies) == 0 && spec.ClusterIP != corev1.ClusterIPNone {
		for _, address := range spec.ClusterIPs {
			family := corev1.IPv4Protocol
			if netutils.IsIPv6String(address) {
				family = corev1.IPv6Protocol
			}
			spec.IPFamilies = append(spec.IPFamilies, family)
		}
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(spec.IPFamilies) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	setDefault(&spec.IPFamilyPolicy, ptr.To(policy))
}

// validate refuses what no API server would have let in and the rest of the agent relies on: names are parts
// of identities.
func validate(object metav1.Object) error {
	checkName := validation.IsDNS1123Subdomain
	service, isService := object.(*corev1.Service)
	if isService {
		checkName = validation.IsDNS1123Label
	}
	if object.GetName() == "" {
		return fmt.Errorf("a %s without metadata.name", kindOf(object))
	}
	if wrong := checkName(object.GetName()); len(wrong) > 0 {
		return fmt.Errorf("metadata.name: %s", wrong[0])
	}
	if namespace := object.GetNamespace(); namespace != "" {
		if wrong := validation.IsDNS1123Label(namespace); len(wrong) > 0 {
			return fmt.Errorf("metadata.namespace: %s", wrong[0])
		}
	}
	if isService {
		return validateService(service)
	}
	return nil
}

func validateService(s *corev1.Service) error {
	for _, port := range s.Spec.Ports {
		if port.Name == "" {
			if len(s.Spec.Ports) > 1 {
				return errors.New("spec.ports: with more than one port, each needs a name")
			}
			continue
		}
		if wrong := validation.IsDNS1123Label(port.Name); len(wrong) > 0 {
			return fmt.Errorf("spec.ports: name %q: %s", port.Name, strings.TrimSuffix(wrong[0], "."))
		}
	}
	if ips := s.Spec.ClusterIPs; len(ips) > 0 && ips[0] != s.Spec.ClusterIP {
		return fmt.Errorf("spec.clusterIPs begins with %q, but spec.clusterIP is %q", ips[0], s.Spec.ClusterIP)
	}
	return nil
}
