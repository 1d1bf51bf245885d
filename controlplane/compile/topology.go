package compile

import (
	"net/netip"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// lists are the endpoints that a port's traffic may go to, by policy.
type lists struct {
	cluster []Backend
	local   []Backend
	any     bool // there is a usable endpoint somewhere in the cluster (rule P06)
}

// pick returns the list of a traffic policy.
func (l lists) pick(local bool) []Backend {
	if local {
		return l.local
	}
	return l.cluster
}

// categorise decides which endpoints serve. The cluster list is the ready endpoints that the hints leave,
// the local list the ready ones on this node; each falls back to its serving, terminating ones by itself
// when it has none (rules T01 to T03). Hints never touch the local list (rule P08).
func categorise(endpoints []endpoint, node Node) lists {
	hinted := hintedFor(endpoints, node)
	var l lists
	l.cluster = choose(endpoints, endpoint.isReady, hinted)
	if len(l.cluster) == 0 {
		l.cluster = choose(endpoints, endpoint.isFallback, everywhere)
	}
	l.local = choose(endpoints, endpoint.isReady, endpoint.isLocal)
	if len(l.local) == 0 {
		l.local = choose(endpoints, endpoint.isFallback, endpoint.isLocal)
	}
	l.any = len(l.cluster) > 0 // the hints leave at least one, or do not count
	return l
}

// serving lists the endpoints that still answer, whatever the policies and hints say of new flows.
func serving(endpoints []endpoint) []netip.AddrPort {
	var addresses []netip.AddrPort
	for _, e := range endpoints {
		if e.ready || e.serving {
			addresses = append(addresses, e.address)
		}
	}
	return addresses
}

func (e endpoint) isReady() bool    { return e.ready }
func (e endpoint) isFallback() bool { return e.serving && e.terminating }
func (e endpoint) isLocal() bool    { return e.local }

func everywhere(endpoint) bool { return true }

// choose returns the endpoints that pass both tests, as backends.
func choose(endpoints []endpoint, usable, placed func(endpoint) bool) []Backend {
	var backends []Backend
	for i, e := range endpoints {
		if !usable(e) || !placed(e) {
			continue
		}
		if backends == nil {
			backends = make([]Backend, 0, len(endpoints)-i)
		}
		backends = append(backends, Backend{Address: e.address, Local: e.local, Terminating: e.terminating, Tunnel: e.tunnel, Weight: e.weight})
	}
	return fitting(backends)
}

// hintedFor returns the test that the hints ask for: those for this node where every ready endpoint has
// node hints and one is for us, else the same with zones, else none (rules H01 to H03).
func hintedFor(endpoints []endpoint, node Node) func(endpoint) bool {
	forNode := func(e endpoint) bool { return hasNode(e.nodeHints, node.Name) }
	if agreed(endpoints, forNode, func(e endpoint) bool { return len(e.nodeHints) > 0 }) {
		return forNode
	}
	forZone := func(e endpoint) bool { return hasZone(e.zoneHints, node.Zone) }
	if node.Zone != "" && agreed(endpoints, forZone, func(e endpoint) bool { return len(e.zoneHints) > 0 }) {
		return forZone
	}
	return everywhere
}

// agreed tells whether every ready endpoint has a hint, and one at least has ours.
func agreed(endpoints []endpoint, ours, hinted func(endpoint) bool) bool {
	found := false
	for _, e := range endpoints {
		if !e.ready {
			continue
		}
		if !hinted(e) {
			return false
		}
		found = found || ours(e)
	}
	return found
}

func hasNode(hints []discoveryv1.ForNode, name string) bool {
	for _, hint := range hints {
		if hint.Name == name {
			return true
		}
	}
	return false
}

func hasZone(hints []discoveryv1.ForZone, name string) bool {
	for _, hint := range hints {
		if hint.Name == name {
			return true
		}
	}
	return false
}
