// Package lab builds a small cluster out of network namespaces, and drives the real weir binary in it.
//
//	  client          node1 (runs weir agent)                           node2 (a router)
//	┌────────┐      ┌───────────────────────────────────┐             ┌──────────────────────────┐
//	│ eth0   ├──────┤ eth0                         eth1 ├─────────────┤ eth0                     │
//	│ .10    │      │ .1                           .1   │             │ .2                       │
//	│ .11    │      │                                   │             │                          │
//	└────────┘      │ caliweb1  caliweb2  calitoolbox   │             │ caliweb3  caliweb4       │
//	                └────┬─────────┬──────────┬─────────┘             └────┬─────────┬───────────┘
//	                  ┌──┴───┐  ┌──┴───┐  ┌───┴─────┐                   ┌──┴───┐  ┌──┴───┐
//	                  │ web1 │  │ web2 │  │ toolbox │                   │ web3 │  │ web4 │
//	                  └──────┘  └──────┘  └─────────┘                   └──────┘  └──────┘
//	   192.0.2.0/24                10.1.1.0/24         198.51.100.0/24     10.1.2.0/24
//	   2001:db8:1::/64             fd00:10:1:1::/64    2001:db8:2::/64     fd00:10:1:2::/64
//
// That is the default: two networks, and pods on routed veths with a /32 each, as Calico has them. Options
// changes it: one network for the client and both nodes; pods behind a bridge; an overlay device (vxlan)
// toward node2; devices without an Ethernet header in place of the networks' veths; a real node's
// netfilter rules. Each pod runs the servers of server.go, except toolbox, which is a client.
//
// With TwoAgents node2 is a node like node1: an agent can run on it too, reading the same manifests, and a second
// wire lets the client send there as well (nodes.go), under the same address, so that a connection can move from one
// node to the other as routers' choices do:
//
//	  client                      node2
//	┌────────┐                  ┌─────────────────────┐
//	│ eth1   ├──────────────────┤ eth1 .2        eth0 ├── node1
//	└────────┘  198.18.2.0/24   └─────────────────────┘
//	            2001:db8:5::/64
//
// Processes of a node are clients when Dial is called on its host, servers with HostServers; with Cgroups every host's
// sockets belong to a cgroup, as the socket edge needs (cgroup.go). A server's host can be made to fail in several ways
// (fault.go), a host can send SYNs that nobody means (flood.go).
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/weir-lb/weir/controlplane/compile"
)

// PodNetwork says how pods are connected to their node, and nodes' pods with each other.
type PodNetwork string

// The pod networks of a lab.
const (
	Routed  PodNetwork = "routed"  // veths with a /32 each; 10.1.2.0/24 is routed to node2
	Bridge  PodNetwork = "bridge"  // veths in the bridge cni0, which has an address; 10.1.2.0/24 as above
	Overlay PodNetwork = "overlay" // a bridge, and a vxlan device toward node2, as flannel
)

// Wire is what a network between hosts is made of.
type Wire string

// The wires of a lab.
const (
	Veth Wire = "veth" // Ethernet
	Tun  Wire = "tun"  // no Ethernet header; a forwarder in this process carries the packets
)

// Options describes a lab. The zero value is the one in the picture.
type Options struct {
	Pods       PodNetwork // Routed if empty
	OneNetwork bool       // client, node1 and node2 share 192.0.2.0/24 and a switch
	Outside    Wire       // between client and node1; Veth if empty
	Nodes      Wire       // between node1 and node2; Veth if empty
	Netfilter  bool       // a real node's rules on the nodes: see netfilter.go
	RealNICs   bool       // the veths behave as NICs do to an XDP program on the nodes: see nics.go
	MTU        int        // of every veth; the kernel's 1500 if 0
	NoServers  bool       // the caller starts the pods' servers

	TwoAgents   bool // node2 runs an agent too, and the client has a wire to it: see nodes.go
	HostServers bool // the nodes serve too, as pods with host networking do
	Cgroups     bool // every host's sockets belong to a cgroup of its own: see cgroup.go
}

// Host is a namespace with its addresses.
type Host struct {
	*Namespace
	Role string // "client", "node1", "web1", ...
	IPv4 netip.Addr
	IPv6 netip.Addr

	node    *Host        // that it is a pod of; itself for a node; nil outside of the cluster
	cgroup  string       // that its sockets belong to; empty: this process's
	sockets *socketMaker // nil until the first socket in the cgroup
	making  sync.Mutex   // guards sockets
}

// Addr returns the host's address in the family.
func (h *Host) Addr(family compile.Family) netip.Addr {
	if family == compile.IPv6 {
		return h.IPv6
	}
	return h.IPv4
}

// Lab is a built topology.
type Lab struct {
	Options Options
	Dir     string // private directory, removed with the lab

	Client  *Host
	Node1   *Host   // its addresses are those of the client's network
	Node2   *Host   // its addresses are those of the nodes' network
	Web     []*Host // pods with servers: web1 and web2 on node1, web3 and web4 on node2
	Toolbox *Host   // a pod of node1 that is a client

	// Node1Inner and Node1Inner6 are node1's addresses as node2's pods see it: the source of what it forwards.
	Node1Inner, Node1Inner6 netip.Addr

	lan     *Host // the switch of OneNetwork
	prefix  string
	cgroup  string // of all its hosts, with Options.Cgroups
	closers []func() error
}

// Addresses that hosts other than the pods have. Pods' are computed.
var (
	clientSecond  = netip.MustParseAddr("192.0.2.11")
	clientSecond6 = netip.MustParseAddr("2001:db8:1::11")
)

// Build makes a lab. It is removed with Close, or with the session.
func (s *Session) Build(options Options) (*Lab, error) {
	number := strconv.FormatInt(s.labs.Add(1), 10)
	l := &Lab{Options: options.withDefaults(), Dir: filepath.Join(s.dir, number), prefix: namespacePrefix + s.id + "-" + number + "-"}
	steps := []func() error{
		func() error { return os.MkdirAll(l.Dir, 0o755) },
		l.addCgroup,
		l.addHosts,
		l.connectHosts,
		l.addPods,
		l.routeBetweenNodes,
		l.setMTU,
		l.addNetfilter,
		l.addServers,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
		}
	}
	return l, nil
}

// withDefaults fills in what was left empty.
func (o Options) withDefaults() Options {
	if o.Pods == "" {
		o.Pods = Routed
	}
	if o.Outside == "" {
		o.Outside = Veth
	}
	if o.Nodes == "" {
		o.Nodes = Veth
	}
	return o
}

// Close removes the lab: last made, first removed.
func (l *Lab) Close() error {
	var err error
	for i := len(l.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, l.closers[i]())
	}
	l.closers = nil
	return errors.Join(err, os.RemoveAll(l.Dir))
}

// onClose adds something to undo.
func (l *Lab) onClose(f func() error) { l.closers = append(l.closers, f) }

// Local returns the pods of node1 that have servers.
func (l *Lab) Local() []*Host { return l.Web[:2] }

// Remote returns the pods of node2, which have servers.
func (l *Lab) Remote() []*Host { return l.Web[2:] }

// NodesDevice names node1's device toward node2's pods.
func (l *Lab) NodesDevice() string {
	switch {
	case l.Options.Pods == Overlay:
		return overlayName
	case l.Options.OneNetwork:
		return "eth0"
	default:
		return "eth1"
	}
}

// addHost makes a namespace that goes with the lab.
func (l *Lab) addHost(role, ipv4, ipv6 string) (*Host, error) {
	namespace, err := newNamespace(l.prefix + role)
	if err != nil {
		return nil, err
	}
	host := &Host{Namespace: namespace, Role: role}
	l.onClose(func() error {
		return errors.Join(host.closeSockets(), endProcesses([]string{filepath.Join(netnsDir, namespace.Name)}), namespace.close())
	})
	if ipv4 != "" {
		host.IPv4, host.IPv6 = netip.MustParseAddr(ipv4), netip.MustParseAddr(ipv6)
	}
	return host, nil
}

// addHosts makes the client and the nodes.
func (l *Lab) addHosts() error {
	var err error
	if l.Client, err = l.addHost("client", "192.0.2.10", "2001:db8:1::10"); err != nil {
		return err
	}
	if l.Node1, err = l.addHost("node1", "192.0.2.1", "2001:db8:1::1"); err != nil {
		return err
	}
	node2, node2v6 := "198.51.100.2", "2001:db8:2::2"
	l.Node1Inner, l.Node1Inner6 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:2::1")
	if l.Options.OneNetwork {
		node2, node2v6 = "192.0.2.2", "2001:db8:1::2"
		l.Node1Inner, l.Node1Inner6 = l.Node1.IPv4, l.Node1.IPv6
	}
	if l.Node2, err = l.addHost("node2", node2, node2v6); err != nil {
		return err
	}
	return errors.Join(l.makeNode(l.Node1), l.makeNode(l.Node2), l.enterCgroup(l.Client))
}

// makeNode makes a host a node: a router.
func (l *Lab) makeNode(h *Host) error {
	h.node = h
	return errors.Join(forwardPackets(h), l.enterCgroup(h))
}

// forwardPackets makes a host a router.
func forwardPackets(h *Host) error {
	return errors.Join(
		h.Sysctl("net/ipv4/ip_forward", "1"),
		h.Sysctl("net/ipv6/conf/all/forwarding", "1"),
		h.Sysctl("net/ipv6/conf/default/forwarding", "1"),
	)
}

// connectHosts makes the networks between client and nodes.
func (l *Lab) connectHosts() error {
	connect := l.connectTwoNetworks
	if l.Options.OneNetwork {
		connect = l.connectOneNetwork
	}
	if err := connect(); err != nil {
		return err
	}
	if err := l.addClientAddresses(); err != nil {
		return err
	}
	// Each is the other's way to everywhere else: VIPs from outside, the world from the pods.
	return errors.Join(
		l.Client.addDefaultRoutes("eth0", l.Node1.IPv4, l.Node1.IPv6),
		l.Node1.addDefaultRoutes("eth0", l.Client.IPv4, l.Client.IPv6),
		l.addUplink(),
		l.makeNICs(),
	)
}

// connectTwoNetworks puts client and node2 on different sides of node1.
func (l *Lab) connectTwoNetworks() error {
	if err := l.connect(l.Options.Outside, l.Client, "eth0", l.Node1, "eth0"); err != nil {
		return err
	}
	if err := l.connect(l.Options.Nodes, l.Node2, "eth0", l.Node1, "eth1"); err != nil {
		return err
	}
	return errors.Join(
		l.Client.addAddress("eth0", netip.PrefixFrom(l.Client.IPv4, 24), netip.PrefixFrom(l.Client.IPv6, 64)),
		l.Node1.addAddress("eth0", netip.PrefixFrom(l.Node1.IPv4, 24), netip.PrefixFrom(l.Node1.IPv6, 64)),
		l.Node1.addAddress("eth1", netip.PrefixFrom(l.Node1Inner, 24), netip.PrefixFrom(l.Node1Inner6, 64)),
		l.Node2.addAddress("eth0", netip.PrefixFrom(l.Node2.IPv4, 24), netip.PrefixFrom(l.Node2.IPv6, 64)),
	)
}

// connectOneNetwork puts client, node1 and node2 on a switch, which is a bridge in a namespace of its own.
func (l *Lab) connectOneNetwork() error {
	var err error
	if l.lan, err = l.addHost("switch", "", ""); err != nil {
		return err
	}
	if err := l.lan.addBridge("lan"); err != nil {
		return err
	}
	for _, host := range []*Host{l.Client, l.Node1, l.Node2} {
		if err := addVeth(host, "eth0", l.lan, host.Role); err != nil {
			return err
		}
		if err := l.lan.addPort("lan", host.Role); err != nil {
			return err
		}
		if err := host.addAddress("eth0", netip.PrefixFrom(host.IPv4, 24), netip.PrefixFrom(host.IPv6, 64)); err != nil {
			return err
		}
	}
	return nil
}

// addClientAddresses gives the client a second address of each family: two clients in one.
func (l *Lab) addClientAddresses() error {
	return errors.Join(
		l.Client.addSecondary("eth0", netip.PrefixFrom(clientSecond, 24)),
		l.Client.addSecondary("eth0", netip.PrefixFrom(clientSecond6, 64)),
	)
}

// SecondAddr returns the client's second address in the family.
func (l *Lab) SecondAddr(family compile.Family) netip.Addr {
	if family == compile.IPv6 {
		return clientSecond6
	}
	return clientSecond
}
