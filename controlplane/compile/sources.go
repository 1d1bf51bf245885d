package compile

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"
)

// sources are who may use the load balancer's addresses of a Service in one family.
type sources struct {
	restricted bool
	prefixes   []netip.Prefix // sorted; none: nobody may
}

// readSources reads loadBalancerSourceRanges, for those families that have an address of the load balancer (rules
// L04, L05, S07). What cannot be read denies everybody, and so does it where all ranges are of the other family:
// kube-proxy would admit everybody there.
func readSources(service *corev1.Service, all map[Family]*addresses, node Node, problems *problems) {
	texts := sourceRanges(service)
	if len(texts) == 0 {
		return
	}
	ranges, readable := parseRanges(texts, problems)
	for _, family := range []Family{IPv4, IPv6} {
		of := all[family]
		if len(of.loadBalancer) == 0 {
			continue
		}
		if of.sources = sourcesOf(ranges[family], of.loadBalancer, node); readable && len(ranges[family]) == 0 {
			problems.add("SourceRangesFamily", "loadBalancerSourceRanges has no %s range: nobody may use the load balancer's %s addresses; add %s/0 to admit everybody", family, family, family.unspecified())
		}
	}
}

// sourceRanges returns the ranges as they are written; the annotation counts where the field is empty.
func sourceRanges(service *corev1.Service) []string {
	if texts := service.Spec.LoadBalancerSourceRanges; len(texts) > 0 {
		return texts
	}
	annotation := strings.TrimSpace(service.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey])
	if annotation == "" {
		return nil
	}
	return strings.Split(annotation, ",")
}

// parseRanges sorts ranges by family. If one is not readable, there are none.
func parseRanges(texts []string, problems *problems) (ranges map[Family][]netip.Prefix, readable bool) {
	ranges, readable = map[Family][]netip.Prefix{}, true
	for _, text := range texts {
		prefix, valid := parsePrefix(text)
		if !valid {
			problems.add("SourceRangesInvalid", "source range %q is not a CIDR: nobody may use the load balancer's addresses until it is corrected", text)
			readable = false
			continue
		}
		family := familyOf(prefix.Addr())
		ranges[family] = append(ranges[family], prefix)
	}
	if !readable {
		return nil, false
	}
	return ranges, true
}

// parsePrefix reads a CIDR as the API server does: space around it counts for nothing, leading zeros are decimal.
func parsePrefix(text string) (prefix netip.Prefix, valid bool) {
	_, network, err := netutils.ParseCIDRSloppy(strings.TrimSpace(text))
	if err != nil {
		return prefix, false
	}
	address, _ := netip.AddrFromSlice(network.IP)
	ones, _ := network.Mask.Size()
	if address.Is4In6() && ones >= 96 {
		return netip.PrefixFrom(address.Unmap(), ones-96), true
	}
	return netip.PrefixFrom(address, ones), true
}

// sourcesOf returns the sources of a family with restrictions. A range that is the whole family is none. Where the
// node itself may, so may who speaks as the load balancer: an agent of a cloud puts its address on the node, which
// then has it as its source (rule L05).
func sourcesOf(ranges []netip.Prefix, loadBalancer []netip.Addr, node Node) sources {
	prefixes := slices.Clone(ranges)
	for _, prefix := range ranges {
		if prefix.Bits() == 0 {
			return sources{}
		}
		if slices.ContainsFunc(node.Own, prefix.Contains) {
			for _, address := range loadBalancer {
				prefixes = append(prefixes, netip.PrefixFrom(address, address.BitLen()))
			}
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return sources{restricted: true, prefixes: slices.Compact(prefixes)}
}
