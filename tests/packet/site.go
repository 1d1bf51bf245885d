package packet

import (
	"net"
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Pair is a thing that has an address in each family.
type Pair struct{ IPv4, IPv6 netip.Addr }

func pair(ipv4, ipv6 string) Pair {
	return Pair{netip.MustParseAddr(ipv4), netip.MustParseAddr(ipv6)}
}

// Of returns the address in one family.
func (p Pair) Of(family compile.Family) netip.Addr {
	if family == compile.IPv4 {
		return p.IPv4
	}
	return p.IPv6
}

// Port returns the address in one family, with a port.
func (p Pair) Port(family compile.Family, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.Of(family), port)
}

// LinkSpec is a device of the node. Its other end is in a namespace of its own, the wire.
type LinkSpec struct {
	Name      string
	MAC       net.HardwareAddr
	Addresses Pair // of the node, on this device; invalid: none
	MTU       int
	Pod       uint16 // id of the pod edge it is; 0: node edge
	XDP       bool   // an XDP program may redirect to it
	Bridge    bool   // a bridge, with the device "<name>p" as its only port
	Router    Pair   // at its other end, as the agent says by default routes of any table; invalid: none
}

// Site is the node that the packets of the tests arrive at: its devices, routes and neighbours.
type Site struct {
	Links      []LinkSpec
	Routes     []RouteSpec
	Neighbours []NeighbourSpec
}

// RouteSpec is a route of the node.
type RouteSpec struct {
	Prefix  string
	Device  string
	Gateway string // "": on the link
	Kind    string // "": unicast
}

// NeighbourSpec is a neighbour whose MAC is known for good.
type NeighbourSpec struct {
	Device  string
	Address Pair
	MAC     net.HardwareAddr
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0x02, 0, 0, 0, 0, last} }

// MACs of the site that are no device's.
func gatewayMAC() net.HardwareAddr       { return mac(0xfe) }
func secondGatewayMAC() net.HardwareAddr { return mac(0xfd) }
func neighbourMAC() net.HardwareAddr     { return mac(0x0a) }
func podMAC() net.HardwareAddr           { return mac(0xc0) }
func strangerMAC() net.HardwareAddr      { return mac(0x66) }

// Hosts are the addresses of the site that tests name.
type Hosts struct {
	NodeEth0, NodeEth1, Gateway, SecondGateway Pair
	ThirdGateway                               Pair // eth3's, which no route of the main table names
	Client, OtherClient, SecondClient          Pair // behind eth0, eth0, eth1
	Neighbour                                  Pair // a backend on eth0's link
	Silent                                     Pair // on eth0's link, MAC unknown
	Remote, OtherRemote                        Pair // backends behind eth0's gateway
	RemoteSecond                               Pair // behind eth1's gateway
	RemoteThird                                Pair // behind eth2, which has no address
	RemoteFourth                               Pair // behind eth3: small MTU, no XDP
	RemoteBridge                               Pair // behind br0
	Blackhole, Unrouted                        Pair
	Pod, OtherPod, BarePod                     Pair
	BigPod                                     Pair // on a link with a large MTU
	PodGateway                                 Pair // the node's address on the pods' links
	ClusterIP, LoadBalancer, External          Pair
	NobodysIP, LeftIP                          Pair // beside ClusterIP: no Service has it; an external address
}

// NewHosts returns the addresses of the site.
func NewHosts() Hosts {
	return Hosts{
		NodeEth0:      pair("192.0.2.1", "2001:db8:2::1"),
		NodeEth1:      pair("198.51.100.1", "2001:db8:64::1"),
		Gateway:       pair("192.0.2.254", "2001:db8:2::fe"),
		SecondGateway: pair("198.51.100.254", "2001:db8:64::fe"),
		ThirdGateway:  pair("192.0.3.254", "2001:db8:3::fe"),
		Client:        pair("203.0.113.5", "2001:db8:c::5"),
		OtherClient:   pair("203.0.113.6", "2001:db8:c::6"),
		SecondClient:  pair("198.51.100.20", "2001:db8:64::20"),
		Neighbour:     pair("192.0.2.10", "2001:db8:2::10"),
		Silent:        pair("192.0.2.77", "2001:db8:2::77"),
		Remote:        pair("10.2.0.10", "fd00:2::10"),
		OtherRemote:   pair("10.2.0.11", "fd00:2::11"),
		RemoteSecond:  pair("10.3.0.10", "fd00:3::10"),
		RemoteThird:   pair("10.4.0.10", "fd00:4::10"),
		RemoteFourth:  pair("10.5.0.10", "fd00:5::10"),
		RemoteBridge:  pair("10.6.0.10", "fd00:6::10"),
		Blackhole:     pair("10.9.0.10", "fd00:9::10"),
		Unrouted:      pair("10.8.0.10", "fd00:8::10"),
		Pod:           pair("10.1.0.10", "fd00:1::10"),
		OtherPod:      pair("10.1.0.11", "fd00:1::11"),
		BarePod:       pair("10.1.0.12", "fd00:1::12"),
		BigPod:        pair("10.1.0.13", "fd00:1::13"),
		PodGateway:    pair("10.1.0.1", "fd00:1::1"),
		ClusterIP:     pair("10.96.0.10", "fd00:96::10"),
		NobodysIP:     pair("10.96.0.11", "fd00:96::11"),
		LeftIP:        pair("10.96.0.12", "fd00:96::12"),
		LoadBalancer:  pair("198.18.0.1", "2001:db8:1b::1"),
		External:      pair("198.18.7.7", "2001:db8:e::7"),
	}
}

// NewSite returns the node of the tests:
//
//	client -- gateway -- eth0 \            / pod0: pod, OtherPod's is pod1, BarePod's is pod2
//	       second gateway -- eth1 -- node --
//	             eth2, eth3, br0  /          \ tun0
func NewSite() Site {
	hosts := NewHosts()
	gateway, second := hosts.Gateway, hosts.SecondGateway
	site := Site{
		Links: []LinkSpec{
			{Name: "eth0", MAC: mac(1), Addresses: hosts.NodeEth0, XDP: true, Router: gateway},
			{Name: "eth1", MAC: mac(2), Addresses: hosts.NodeEth1, XDP: true},
			{Name: "eth2", MAC: mac(3), XDP: true},
			{Name: "eth3", MAC: mac(4), Addresses: pair("192.0.3.1", "2001:db8:3::1"), MTU: 1300, Router: hosts.ThirdGateway},
			{Name: "br0", MAC: mac(5), Addresses: pair("192.0.4.1", "2001:db8:4::1"), Bridge: true},
			{Name: "pod0", MAC: mac(0x10), Addresses: hosts.PodGateway, Pod: 7},
			{Name: "pod1", MAC: mac(0x11), Addresses: hosts.PodGateway, Pod: 8},
			{Name: "pod2", MAC: mac(0x12), Pod: 9},
			{Name: "big0", MAC: mac(6), Addresses: pair("192.0.5.1", "2001:db8:5::1"), MTU: 9000},
			{Name: "big1", MAC: mac(0x13), Addresses: hosts.PodGateway, MTU: 9000, Pod: 10},
		},
		Neighbours: []NeighbourSpec{
			{"eth0", hosts.Gateway, gatewayMAC()},
			{"eth1", hosts.SecondGateway, secondGatewayMAC()},
			{"eth3", hosts.ThirdGateway, secondGatewayMAC()},
			{"eth0", hosts.Neighbour, neighbourMAC()},
			{"eth1", hosts.SecondClient, neighbourMAC()},
			{"eth2", hosts.RemoteThird, neighbourMAC()},
			{"eth3", hosts.RemoteFourth, neighbourMAC()},
			{"br0", hosts.RemoteBridge, neighbourMAC()},
			{"pod0", hosts.Pod, podMAC()},
			{"pod1", hosts.OtherPod, podMAC()},
			{"pod2", hosts.BarePod, podMAC()},
			{"big1", hosts.BigPod, podMAC()},
		},
	}
	site.route(pair("0.0.0.0", "::"), 0, 0, "eth0", gateway, "")
	site.route(pair("10.2.0.0", "fd00:2::"), 16, 48, "eth0", gateway, "")
	site.route(pair("10.3.0.0", "fd00:3::"), 16, 48, "eth1", second, "")
	site.route(hosts.RemoteThird, 32, 128, "eth2", Pair{}, "")
	site.route(hosts.RemoteFourth, 32, 128, "eth3", Pair{}, "")
	site.route(hosts.RemoteBridge, 32, 128, "br0", Pair{}, "")
	site.route(pair("10.9.0.0", "fd00:9::"), 16, 48, "", Pair{}, "blackhole")
	site.route(pair("10.8.0.0", "fd00:8::"), 16, 48, "", Pair{}, "throw")
	site.route(hosts.Pod, 32, 128, "pod0", Pair{}, "")
	site.route(hosts.OtherPod, 32, 128, "pod1", Pair{}, "")
	site.route(hosts.BarePod, 32, 128, "pod2", Pair{}, "")
	site.route(hosts.BigPod, 32, 128, "big1", Pair{}, "")
	return site
}

// route adds a route in each family.
func (s *Site) route(prefix Pair, bits4, bits6 int, device string, gateway Pair, kind string) {
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		bits := bits4
		if family == compile.IPv6 {
			bits = bits6
		}
		via := ""
		if gateway.IPv4.IsValid() {
			via = gateway.Of(family).String()
		}
		prefix := netip.PrefixFrom(prefix.Of(family), bits).String()
		s.Routes = append(s.Routes, RouteSpec{Prefix: prefix, Device: device, Gateway: via, Kind: kind})
	}
}
