package compile

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// HealthCheck is a port on which load balancers ask whether the node has endpoints of a Service (rule Hc1). The zero
// one is none.
type HealthCheck struct {
	Port  uint16
	Local int // addresses of ready endpoints on this node, over all ports and families (rules Hc2, T05)
}

// readHealthCheck returns the health check that a Service asks for.
func readHealthCheck(in Input, table *endpointTable, problems *problems) HealthCheck {
	spec := in.Service.Spec
	if spec.Type != corev1.ServiceTypeLoadBalancer || spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal || spec.HealthCheckNodePort == 0 {
		return HealthCheck{}
	}
	number := spec.HealthCheckNodePort
	switch {
	case number < 1 || number > 65535:
		problems.add("PortRefused", "healthCheckNodePort %d is not between 1 and 65535: there is no health check", number)
		return HealthCheck{}
	case in.SNATPorts.Contains(uint16(number)):
		problems.add("NodePortReserved", "healthCheckNodePort %d is among the ports of --snat-ports, %s: there is no health check; choose another, or other --snat-ports", number, in.SNATPorts)
		return HealthCheck{}
	}
	local := map[netip.Addr]struct{}{}
	for _, endpoints := range table.endpoints {
		for _, e := range endpoints {
			if e.ready && e.local {
				local[e.address.Addr()] = struct{}{}
			}
		}
	}
	return HealthCheck{Port: uint16(number), Local: len(local)}
}
