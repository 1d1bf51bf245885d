package lab

import (
	"errors"
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Addresses of node2 in the client's second network, and that network's prefixes.
var (
	node2Outer  = netip.MustParsePrefix("198.18.2.2/24")
	node2Outer6 = netip.MustParsePrefix("2001:db8:5::2/64")
)

// Nodes returns the hosts that an agent can run on.
func (l *Lab) Nodes() []*Host {
	if l.Options.TwoAgents {
		return []*Host{l.Node1, l.Node2}
	}
	return []*Host{l.Node1}
}

// Outer returns the address by which the client reaches a node.
func (l *Lab) Outer(node *Host, family compile.Family) netip.Addr {
	switch {
	case node == l.Node1 || l.Options.OneNetwork || !l.Options.TwoAgents:
		return node.Addr(family)
	case family == compile.IPv6:
		return node2Outer6.Addr()
	default:
		return node2Outer.Addr()
	}
}

// Inner returns node1's address toward node2.
func (l *Lab) Inner(family compile.Family) netip.Addr { return l.InnerOf(l.Node1, family) }

// InnerOf returns a node's address toward the other one's pods: the source of what it sends on.
func (l *Lab) InnerOf(node *Host, family compile.Family) netip.Addr {
	switch {
	case node == l.Node2 && l.Options.Pods == Overlay && family == compile.IPv6:
		return l.remote().ipv6.Addr()
	case node == l.Node2 && l.Options.Pods == Overlay:
		return l.remote().ipv4.Addr()
	case node == l.Node2:
		return node.Addr(family)
	case family == compile.IPv6:
		return l.Node1Inner6
	default:
		return l.Node1Inner
	}
}

// addUplink is node2's way to everywhere else: by node1, or a wire of its own to the client.
func (l *Lab) addUplink() error {
	if !l.Options.TwoAgents {
		return l.Node2.addDefaultRoutes("eth0", l.Node1Inner, l.Node1Inner6)
	}
	if l.Options.OneNetwork {
		return l.Node2.addDefaultRoutes("eth0", l.Client.IPv4, l.Client.IPv6)
	}
	if err := l.connect(l.Options.Outside, l.Client, "eth1", l.Node2, "eth1"); err != nil {
		return err
	}
	if err := l.Node2.addAddress("eth1", node2Outer, node2Outer6); err != nil {
		return err
	}
	return errors.Join(l.routeUplink(), l.routeOuterAddresses())
}

// routeUplink makes the wire between client and node2 a way for both. The client has the same addresses on it as toward
// node1.
func (l *Lab) routeUplink() error {
	return errors.Join(
		// Neighbour discovery, unlike ARP, answers for a device's own addresses alone.
		l.Client.addAddress("eth1", hostPrefix(l.Client.IPv6)),
		l.Client.addSecondary("eth1", hostPrefix(clientSecond6)),
		l.Client.addRoutes("eth1",
			route{to: node2Outer.Masked(), source: l.Client.IPv4},
			route{to: node2Outer6.Masked(), source: l.Client.IPv6}),
		l.Node2.addRoutes("eth1",
			route{to: hostPrefix(l.Client.IPv4)}, route{to: hostPrefix(l.Client.IPv6)},
			route{to: hostPrefix(clientSecond)}, route{to: hostPrefix(clientSecond6)},
			route{to: netip.MustParsePrefix("0.0.0.0/0"), via: l.Client.IPv4, onlink: true},
			route{to: netip.MustParsePrefix("::/0"), via: l.Client.IPv6, onlink: true}),
	)
}

// routeOuterAddresses lets each node, and its pods, reach the other under the address that the client knows.
func (l *Lab) routeOuterAddresses() error {
	// Not Node1Inner: with an overlay that becomes an address of the pods' network.
	return errors.Join(
		l.Node1.addRoutes("eth1",
			route{to: hostPrefix(node2Outer.Addr()), via: l.Node2.IPv4},
			route{to: hostPrefix(node2Outer6.Addr()), via: l.Node2.IPv6}),
		l.Node2.addRoutes("eth0",
			route{to: hostPrefix(l.Node1.IPv4), via: l.Node1Inner},
			route{to: hostPrefix(l.Node1.IPv6), via: l.Node1Inner6}),
	)
}

// RouteBy makes the client send to an address by a node, as a router that spreads flows may at any time.
func (l *Lab) RouteBy(node *Host, to netip.Addr) error {
	device, family := "eth0", compile.IPv4
	if to.Is6() {
		family = compile.IPv6
	}
	if node == l.Node2 && !l.Options.OneNetwork {
		device = "eth1"
	}
	return l.Client.replaceRoute(device, route{to: hostPrefix(to), via: l.Outer(node, family), source: l.Client.Addr(family)})
}

// Node returns the node that the host is a pod of, itself for a node, nil for a host outside of the cluster.
func (h *Host) Node() *Host { return h.node }
