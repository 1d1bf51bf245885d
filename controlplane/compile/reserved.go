package compile

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Addresses are those of a Service to which packets may come that no frontend is for (rule C05).
type Addresses struct {
	Allocated []netip.Addr // ClusterIPs: their unknown ports are rejected
	Left      []netip.Addr // external ones, and those that are another proxy's to serve: left alone (rule L09)
}

// Empty tells whether there are none.
func (a Addresses) Empty() bool { return len(a.Allocated)+len(a.Left) == 0 }

// Equal tells whether two are the same.
func (a Addresses) Equal(other Addresses) bool {
	return slices.Equal(a.Allocated, other.Allocated) && slices.Equal(a.Left, other.Left)
}

// addressesOf returns the addresses of a Service, whether it can be served or not.
func addressesOf(service *corev1.Service, ours bool) Addresses {
	var all Addresses
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return all
	}
	clusterIPs := service.Spec.ClusterIPs
	if len(clusterIPs) == 0 {
		clusterIPs = []string{service.Spec.ClusterIP}
	}
	of := &all.Left
	if ours {
		of = &all.Allocated
	}
	add(of, clusterIPs...)
	add(&all.Left, service.Spec.ExternalIPs...)
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		add(&all.Left, ingress.IP)
	}
	return all
}

// add adds those of the texts that are ordinary addresses.
func add(addresses *[]netip.Addr, texts ...string) {
	for _, text := range texts {
		if address, valid := parseAddress(text); valid && special(address) == "" {
			*addresses = append(*addresses, address)
		}
	}
}

// ServiceRanges returns the prefixes of ServiceCIDRs, in the order of the objects.
func ServiceRanges(objects []*networkingv1.ServiceCIDR) (prefixes []netip.Prefix, wrong []Problem) {
	for _, object := range objects {
		problems := &problems{object: "ServiceCIDR " + object.Name}
		for _, text := range object.Spec.CIDRs {
			prefix, valid := parsePrefix(text)
			if why := rangeRefused(prefix, valid); why != "" {
				problems.add("ServiceCIDRRefused", "%q %s: unallocated addresses there are left alone", text, why)
				continue
			}
			prefixes = append(prefixes, prefix.Masked())
		}
		wrong = append(wrong, problems.list...)
	}
	return prefixes, wrong
}

// How short the prefix of a ServiceCIDR may be: a typing error would else take the network from the node.
const (
	rangeLeastBits4 = 8
	rangeLeastBits6 = 48
)

// rangeRefused says why a prefix is no range of Services; empty if it is one.
func rangeRefused(prefix netip.Prefix, valid bool) string {
	least := rangeLeastBits4
	if prefix.Addr().Is6() {
		least = rangeLeastBits6
	}
	switch {
	case !valid:
		return "is not a CIDR"
	case special(prefix.Masked().Addr()) != "":
		return "is " + special(prefix.Masked().Addr())
	case prefix.Bits() < least:
		return fmt.Sprintf("is larger than a /%d", least)
	default:
		return ""
	}
}
