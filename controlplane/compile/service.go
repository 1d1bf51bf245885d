package compile

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	netutils "k8s.io/utils/net"
)

const (
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	labelHeadless  = corev1.IsHeadlessService
)

// ours tells whether a Service asks for frontends at all, and of us (rules S01, S03, S04).
func ours(service *corev1.Service, proxyName string, problems *problems) bool {
	if name, labelled := service.Labels[labelProxyName]; labelled != (proxyName != "") || name != proxyName {
		return false
	}
	if _, headless := service.Labels[labelHeadless]; headless {
		return false
	}
	switch service.Spec.Type {
	case "", corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
	case corev1.ServiceTypeExternalName:
		return false
	default:
		problems.add("TypeNotSupported", "type %q is unknown, so nothing is served: use ClusterIP, NodePort, LoadBalancer or ExternalName", service.Spec.Type)
		return false
	}
	switch service.Spec.ClusterIP {
	case corev1.ClusterIPNone:
		return false
	case "":
		problems.add("ClusterIPMissing", "spec.clusterIP is empty, so nothing is served: name an address, or None for a headless Service")
		return false
	}
	return true
}

// servicePort is a port of a Service that can be served.
type servicePort struct {
	name     string
	protocol Protocol
	port     uint16
	nodePort uint16 // 0 if it has none (rule N01)
}

// portIdentity is what a port is known by (rule S08).
type portIdentity struct {
	name     string
	protocol Protocol
}

// readPorts returns the ports that can be served.
func readPorts(in Input, problems *problems) []servicePort {
	if len(in.Service.Spec.Ports) == 0 {
		problems.add("PortRefused", "spec.ports is empty, so nothing is served")
	}
	seen := map[portIdentity]bool{}
	var ports []servicePort
	for _, p := range in.Service.Spec.Ports {
		port, usable := readPort(in, p, problems)
		if !usable {
			continue
		}
		id := portIdentity{port.name, port.protocol}
		if seen[id] {
			problems.add("PortRefused", "two ports are named %q with protocol %s: the first is served; give the other a name of its own", port.name, port.protocol)
			continue
		}
		seen[id] = true
		ports = append(ports, port)
	}
	return ports
}

// readPort checks one port of a Service.
func readPort(in Input, p corev1.ServicePort, problems *problems) (port servicePort, usable bool) {
	port = servicePort{name: p.Name, protocol: parseProtocol(string(p.Protocol))}
	switch port.protocol {
	case TCP, UDP, SCTP:
	default:
		problems.add("ProtocolNotSupported", "port %d has the unknown protocol %q: use TCP, UDP or SCTP", p.Port, p.Protocol)
		return port, false
	}
	if p.Port < 1 || p.Port > 65535 {
		problems.add("PortRefused", "port %d is not between 1 and 65535", p.Port)
		return port, false
	}
	if wrong := validation.IsDNS1123Label(p.Name); p.Name != "" && len(wrong) > 0 {
		problems.add("PortRefused", "port %d has the name %q, which none can have: %s", p.Port, p.Name, wrong[0])
		return port, false
	}
	port.port = uint16(p.Port)
	if kind := in.Service.Spec.Type; kind != corev1.ServiceTypeNodePort && kind != corev1.ServiceTypeLoadBalancer {
		return port, true
	}
	if p.NodePort < 0 || p.NodePort > 65535 {
		problems.add("PortRefused", "nodePort %d is not between 1 and 65535: port %d has no NodePort", p.NodePort, p.Port)
		return port, true
	}
	if in.SNATPorts.Contains(uint16(p.NodePort)) {
		problems.add("NodePortReserved", "nodePort %d is among the ports of --snat-ports, %s: port %d has no NodePort; choose another, or other --snat-ports", p.NodePort, in.SNATPorts, p.Port)
		return port, true
	}
	port.nodePort = uint16(p.NodePort)
	return port, true
}

// policy is how a Service chooses among its endpoints.
type policy struct {
	internalLocal bool
	externalLocal bool
	affinity      time.Duration // 0 is none
	removed       RemovedEndpoints
	algorithms    algorithms
}

// readPolicy reads the traffic policies and the session affinity; what is unknown counts as the default.
func readPolicy(service *corev1.Service, problems *problems) policy {
	p := policy{removed: readRemoved(service, problems), algorithms: readAlgorithms(service, problems)}
	spec := &service.Spec
	if spec.InternalTrafficPolicy != nil {
		p.internalLocal = isLocal("internalTrafficPolicy", string(*spec.InternalTrafficPolicy), problems)
	}
	p.externalLocal = isLocal("externalTrafficPolicy", string(spec.ExternalTrafficPolicy), problems)
	switch spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
	case corev1.ServiceAffinityClientIP:
		p.affinity = affinityTimeout(spec, problems)
	default:
		problems.add("PolicyUnknown", "sessionAffinity %q is unknown and counts as None: use None or ClientIP", spec.SessionAffinity)
	}
	return p
}

// isLocal reads a traffic policy.
func isLocal(field, value string, problems *problems) bool {
	switch value {
	case "Local":
		return true
	case "", "Cluster":
	default:
		problems.add("PolicyUnknown", "%s %q is unknown and counts as Cluster: use Cluster or Local", field, value)
	}
	return false
}

// affinityTimeout returns how long a client keeps its backend (rule A01).
func affinityTimeout(spec *corev1.ServiceSpec, problems *problems) time.Duration {
	const standard, longest = corev1.DefaultClientIPServiceAffinitySeconds, 86400
	config := spec.SessionAffinityConfig
	if config == nil || config.ClientIP == nil || config.ClientIP.TimeoutSeconds == nil {
		return time.Duration(standard) * time.Second
	}
	seconds := *config.ClientIP.TimeoutSeconds
	if seconds < 1 || seconds > longest {
		problems.add("AffinityTimeoutRefused", "the affinity timeout of %d s is not between 1 and %d: %d s are used", seconds, longest, standard)
		seconds = standard
	}
	return time.Duration(seconds) * time.Second
}

// addresses are the addresses of a Service in one family (rule S05).
type addresses struct {
	family       Family
	clusterIP    netip.Addr // invalid: the family is not served
	loadBalancer []netip.Addr
	sources      sources // of the load balancer's
	external     []netip.Addr
}

// collectAddresses sorts a Service's addresses by family and leaves out those that cannot be served.
func collectAddresses(service *corev1.Service, problems *problems) map[Family]*addresses {
	all := map[Family]*addresses{IPv4: {family: IPv4}, IPv6: {family: IPv6}}
	clusterIPs := service.Spec.ClusterIPs
	if len(clusterIPs) == 0 {
		clusterIPs = []string{service.Spec.ClusterIP}
	}
	for _, text := range clusterIPs {
		address, usable := frontendAddress(ClusterIP, text, problems)
		if !usable {
			continue
		}
		if of := all[familyOf(address)]; !of.clusterIP.IsValid() {
			of.clusterIP = address
		} else if of.clusterIP != address {
			problems.add("AddressRefused", "ClusterIP %s is the second of its family, %s is served", address, of.clusterIP)
		}
	}
	for _, text := range service.Spec.ExternalIPs {
		if of, address := servedFamily(all, ExternalIP, text, problems); of != nil {
			of.external = append(of.external, address)
		}
	}
	collectLoadBalancer(service, all, problems)
	return all
}

// collectLoadBalancer adds the addresses of the load balancer that are not a proxy's (rules L01 to L03).
func collectLoadBalancer(service *corev1.Service, all map[Family]*addresses, problems *problems) {
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		if ingress.IP == "" || ingress.IPMode != nil && *ingress.IPMode != corev1.LoadBalancerIPModeVIP {
			continue
		}
		if of, address := servedFamily(all, LoadBalancer, ingress.IP, problems); of != nil {
			of.loadBalancer = append(of.loadBalancer, address)
		}
	}
}

// servedFamily parses an external address and returns where it belongs; nil, and a problem, if it cannot
// be served.
func servedFamily(all map[Family]*addresses, kind FrontendKind, text string, problems *problems) (*addresses, netip.Addr) {
	address, usable := frontendAddress(kind, text, problems)
	if !usable {
		return nil, address
	}
	of := all[familyOf(address)]
	if !of.clusterIP.IsValid() {
		problems.add("FamilyNotServed", "%s address %s is %s, and the Service has no ClusterIP of that family", kind, address, of.family)
		return nil, address
	}
	return of, address
}

// frontendAddress parses an address that clients shall send to, and refuses those that would take in
// traffic that is not the Service's.
func frontendAddress(kind FrontendKind, text string, problems *problems) (address netip.Addr, usable bool) {
	address, valid := parseAddress(text)
	if !valid {
		problems.add("AddressRefused", "%s address %q is not an IP address", kind, text)
		return address, false
	}
	why := special(address)
	if why == "link-local" && address.Is4() && kind != ExternalIP {
		why = "" // the API server admits these, and so does kube-proxy
	}
	if why != "" {
		problems.add("AddressRefused", "%s address %s is %s: nothing is served there", kind, address, why)
		return address, false
	}
	return address, true
}

// parseAddress reads an address as the API server does: leading zeros are decimal (rule S07).
func parseAddress(text string) (address netip.Addr, valid bool) {
	address, valid = netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	return address.Unmap(), valid
}

// special says what is special about an address that is not an ordinary unicast one, else "".
func special(address netip.Addr) string {
	switch {
	case address.IsUnspecified():
		return "unspecified"
	case address.IsLoopback():
		return "loopback"
	case address.IsLinkLocalUnicast():
		return "link-local"
	case address.IsMulticast():
		return "multicast"
	case address == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "broadcast"
	default:
		return ""
	}
}
