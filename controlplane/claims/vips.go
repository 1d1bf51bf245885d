package claims

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/controlplane/compile"
)

// VIPs knows the addresses that Services are reached at, and which Services have endpoints where, so that
// an endpoint that is really a Service's frontend can be refused (rule E14), and looked at again when that
// Service comes or goes. Not safe for concurrent use.
//
// A ClusterIP is taken whole: nothing else can be there. Of other addresses only the port that is served
// is taken, and not from its own Service: a load balancer's or external address may well be that of a
// machine, where endpoints live, too.
type VIPs struct {
	services  map[types.NamespacedName][]vip
	owners    index                                 // who has a VIP at an address
	endpoints map[types.NamespacedName][]netip.Addr // what each Service's slices name, sorted
	users     index                                 // who has an endpoint at an address
}

// vip is an address, and what is served there.
type vip struct {
	address  netip.AddrPort
	protocol compile.Protocol
	whole    bool // whatever the port and protocol
}

// NewVIPs returns an empty register.
func NewVIPs() *VIPs {
	return &VIPs{
		services:  map[types.NamespacedName][]vip{},
		owners:    newIndex(),
		endpoints: map[types.NamespacedName][]netip.Addr{},
		users:     newIndex(),
	}
}

// Set registers the frontends of a Service; none forgets it. It returns the Services that have an endpoint
// at an address where something has changed.
func (v *VIPs) Set(key types.NamespacedName, services []compile.Service) (stale []types.NamespacedName) {
	old, now := v.services[key], vipsOf(services)
	if slices.Equal(old, now) {
		return nil
	}
	for _, was := range old {
		v.owners.remove(was.address.Addr(), key)
	}
	for _, is := range now {
		v.owners.add(is.address.Addr(), &key)
	}
	v.services[key] = now
	if len(now) == 0 {
		delete(v.services, key)
	}
	for _, one := range difference(old, now, compareVIPs) {
		stale = append(stale, v.users.at(one.address.Addr())...)
	}
	slices.SortFunc(stale, byName)
	return slices.Compact(stale)
}

// SetEndpoints registers the addresses that a Service's slices name, sorted; none forgets them.
func (v *VIPs) SetEndpoints(key types.NamespacedName, addresses []netip.Addr) {
	for _, gone := range difference(v.endpoints[key], addresses, netip.Addr.Compare) {
		if _, still := slices.BinarySearchFunc(addresses, gone, netip.Addr.Compare); still {
			v.users.add(gone, &key)
		} else {
			v.users.remove(gone, key)
		}
	}
	v.endpoints[key] = addresses
	if len(addresses) == 0 {
		delete(v.endpoints, key)
	}
}

// Owner returns the Service whose VIP an endpoint of another Service would be.
func (v *VIPs) Owner(of types.NamespacedName, endpoint netip.AddrPort, protocol compile.Protocol) (owner string, taken bool) {
	for _, key := range v.owners.at(endpoint.Addr()) {
		for _, one := range v.services[key] {
			same := one.address == endpoint && one.protocol == protocol && key != of
			if same || one.whole && one.address.Addr() == endpoint.Addr() {
				return key.String(), true
			}
		}
	}
	return "", false
}

// ClusterIP returns the Service whose ClusterIP an address is; the first by name where several say so.
func (v *VIPs) ClusterIP(address netip.Addr) (service types.NamespacedName, is bool) {
	for _, key := range v.owners.at(address) {
		for _, one := range v.services[key] {
			if one.whole && one.address.Addr() == address {
				return key, true
			}
		}
	}
	return service, false
}

// vipsOf lists the addresses of a Service's services, sorted. A NodePort has none of its own.
func vipsOf(services []compile.Service) []vip {
	var vips []vip
	for _, service := range services {
		for _, frontend := range service.Frontends {
			switch frontend.Kind {
			case compile.NodePort:
			case compile.ClusterIP:
				vips = append(vips, vip{address: netip.AddrPortFrom(frontend.Address.Addr(), 0), whole: true})
			default:
				vips = append(vips, vip{address: frontend.Address, protocol: service.ID.Protocol})
			}
		}
	}
	slices.SortFunc(vips, compareVIPs)
	return slices.Compact(vips)
}

func compareVIPs(a, b vip) int {
	return cmp.Or(a.address.Compare(b.address), cmp.Compare(a.protocol, b.protocol))
}

func byName(a, b types.NamespacedName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// difference returns what is in one of two sorted lists only, in order.
func difference[T any](a, b []T, compare func(T, T) int) (only []T) {
	for len(a) > 0 && len(b) > 0 {
		switch order := compare(a[0], b[0]); {
		case order < 0:
			only, a = append(only, a[0]), a[1:]
		case order > 0:
			only, b = append(only, b[0]), b[1:]
		default:
			a, b = a[1:], b[1:]
		}
	}
	return append(append(only, a...), b...)
}
