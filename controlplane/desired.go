package controlplane

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	netutils "k8s.io/utils/net"

	"github.com/weir-lb/weir/controlplane/claims"
	"github.com/weir-lb/weir/controlplane/clusterips"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
	"github.com/weir-lb/weir/controlplane/tally"
)

// desired is what the maps shall hold, kept up to date Service by Service.
type desired struct {
	proxyName string
	snatPorts compile.PortRange
	node      compile.Node
	dsr       bool            // other nodes' annotations count
	tunnels   compile.Tunnels // what they say
	get       func(store.Key) store.Item

	compiled  map[store.Key]compiled // without those that ask for nothing and have no problem
	troubled  map[store.Key]struct{} // those that have one
	frontends *claims.Frontends
	vips      *claims.VIPs
	addresses *clusterips.Table
	checks    map[store.Key]compile.HealthCheck
	services  map[compile.ID]*compile.Service // with the frontends that they own, at least one
	tally     *tally.Tally                    // of these
	departed  bool                            // a backend has left one of them

	rangeProblems  []compile.Problem // of the ServiceCIDRs
	tunnelProblems []compile.Problem // of the Nodes
}

// compiled is what is kept of the outcome of compiling a Service: others have the rest.
type compiled struct {
	services []compile.Service
	problems []compile.Problem
}

func newDesired(nodeName, proxyName string, get func(store.Key) store.Item) *desired {
	return &desired{
		proxyName: proxyName,
		node:      compile.Node{Name: nodeName},
		get:       get,
		compiled:  map[store.Key]compiled{},
		troubled:  map[store.Key]struct{}{},
		frontends: claims.NewFrontends(),
		vips:      claims.NewVIPs(),
		addresses: clusterips.NewTable(),
		checks:    map[store.Key]compile.HealthCheck{},
		services:  map[compile.ID]*compile.Service{},
		tally:     tally.New(),
	}
}

// setNodes takes in the nodes. It tells whether anything changed that all Services are compiled from, and else of which
// nodes those Services are to be compiled anew that have endpoints there.
func (d *desired) setNodes(nodes []*corev1.Node) (all bool, some map[string]struct{}) {
	node := compile.Node{Name: d.node.Name, Addresses: map[netip.Addr]struct{}{}}
	for _, n := range nodes {
		if n.Name == node.Name {
			node.Zone = n.Labels[corev1.LabelTopologyZone]
		}
		for _, address := range n.Status.Addresses {
			ip, valid := netip.AddrFromSlice(netutils.ParseIPSloppy(address.Address))
			if !valid {
				continue
			}
			node.Addresses[ip.Unmap()] = struct{}{}
			if n.Name == node.Name {
				node.Own = append(node.Own, ip.Unmap())
			}
		}
	}
	if d.dsr {
		d.tunnels, d.tunnelProblems = compile.ReadTunnels(nodes, node.Name)
		node.Tunnels = d.tunnels.Nodes
	}
	all = node.Zone != d.node.Zone || !slices.Equal(node.Own, d.node.Own) || !maps.Equal(node.Addresses, d.node.Addresses)
	some = inOne(node.Tunnels, d.node.Tunnels)
	d.node = node
	return all, some
}

// inOne returns what is in one of two sets only.
func inOne(a, b map[string]struct{}) map[string]struct{} {
	only := map[string]struct{}{}
	for _, pair := range [][2]map[string]struct{}{{a, b}, {b, a}} {
		for name := range pair[0] {
			if _, both := pair[1][name]; !both {
				only[name] = struct{}{}
			}
		}
	}
	return only
}

// setRanges takes in the ServiceCIDRs.
func (d *desired) setRanges(objects []*networkingv1.ServiceCIDR) {
	prefixes, problems := compile.ServiceRanges(objects)
	d.addresses.SetRanges(prefixes)
	d.rangeProblems = problems
}

// update compiles Services, and those that the outcome concerns. It returns the IDs of the services that
// are to be written or, where they are not in d.services any more, removed.
func (d *desired) update(items []store.Item) (changed []compile.ID) {
	touched := map[compile.ID]struct{}{}
	for len(items) > 0 {
		stale := map[store.Key]struct{}{}
		for _, item := range items {
			d.compile(item, touched, stale)
		}
		// A Service's VIPs do not depend on its endpoints, so the second round makes nothing stale.
		items = items[:0:0]
		for key := range stale {
			items = append(items, d.get(key))
		}
	}
	for id := range touched {
		if d.settle(id) {
			changed = append(changed, id)
		}
	}
	slices.SortFunc(changed, compile.ID.Compare)
	return changed
}

// compile compiles one Service. It notes the services that may be different now, and the Services to be
// compiled again because an endpoint of theirs became or ceased to be a VIP (rule E14).
func (d *desired) compile(item store.Item, touched map[compile.ID]struct{}, stale map[store.Key]struct{}) {
	var result compile.Result
	if item.Service != nil {
		result = compile.Compile(compile.Input{
			Service: item.Service, Slices: item.Slices, Node: d.node, ProxyName: d.proxyName, SNATPorts: d.snatPorts,
			VIP: func(endpoint netip.AddrPort, protocol compile.Protocol) (string, bool) {
				return d.vips.Owner(item.Key, endpoint, protocol)
			},
		})
	}
	d.register(d.compiled[item.Key].services, result.Services, touched)
	d.addresses.Set(item.Key, result.Addresses)
	d.vips.SetEndpoints(item.Key, result.Endpoints)
	for _, key := range d.vips.Set(item.Key, result.Services) {
		stale[key] = struct{}{}
	}
	d.compiled[item.Key] = compiled{result.Services, result.Problems}
	if d.checks[item.Key] = result.HealthCheck; result.HealthCheck == (compile.HealthCheck{}) {
		delete(d.checks, item.Key)
	}
	if d.troubled[item.Key] = struct{}{}; len(result.Problems) == 0 {
		delete(d.troubled, item.Key)
	}
	if len(result.Services)+len(result.Problems) == 0 {
		delete(d.compiled, item.Key)
	}
}

// register replaces the services of one Service among the claimants of frontends.
func (d *desired) register(old, now []compile.Service, touched map[compile.ID]struct{}) {
	touch := func(id compile.ID, affected []compile.ID) {
		touched[id] = struct{}{}
		for _, other := range affected {
			touched[other] = struct{}{}
		}
	}
	for _, was := range old {
		same := func(is compile.Service) bool { return is.ID == was.ID }
		if !slices.ContainsFunc(now, same) {
			touch(was.ID, d.frontends.Delete(was.ID))
		}
	}
	for i := range now {
		touch(now[i].ID, d.frontends.Set(&now[i]))
	}
}

// settle brings one service up to date, and tells whether it changed.
func (d *desired) settle(id compile.ID) (changed bool) {
	old, had := d.services[id]
	if !had {
		old = &compile.Service{}
	}
	now := d.frontends.Get(id)
	if now == nil || len(now.Frontends) == 0 {
		delete(d.services, id)
		d.tally.Replace(*old, compile.Service{})
		d.departed = d.departed || had
		return had
	}
	d.services[id] = now
	d.tally.Replace(*old, *now)
	d.departed = d.departed || loses(old, now)
	return !had || !old.Equal(*now)
}

// loses tells whether a backend has left a service whose flows end then.
func loses(old, now *compile.Service) bool {
	for _, was := range old.Serving {
		if _, stays := slices.BinarySearchFunc(now.Serving, was, netip.AddrPort.Compare); !stays {
			return true
		}
	}
	return false
}

// problems lists all that is wrong with what was compiled.
func (d *desired) problems() []compile.Problem {
	problems := append(d.frontends.Problems(), d.rangeProblems...)
	problems = append(problems, d.tunnelProblems...)
	for key := range d.troubled {
		problems = append(problems, d.compiled[key].problems...)
	}
	return problems
}

// all returns every service, in order of their IDs.
func (d *desired) all() []compile.Service {
	services := make([]compile.Service, 0, len(d.services))
	for _, service := range d.services {
		services = append(services, *service)
	}
	slices.SortFunc(services, func(a, b compile.Service) int { return a.ID.Compare(b.ID) })
	return services
}

// find returns the service that has a frontend.
func (d *desired) find(address netip.AddrPort, protocol compile.Protocol) (service compile.Service, known bool) {
	owner, owned := d.frontends.Owner(address, protocol)
	if !owned {
		return service, false
	}
	if found := d.services[owner]; found != nil {
		return *found, true
	}
	return service, false
}
