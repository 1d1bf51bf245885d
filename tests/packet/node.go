package packet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/maps"
)

// Device is a device of the node, as the programs and the agent know it.
type Device struct {
	LinkSpec
	Index  int
	Record maps.Device
}

// Node is a site made real in the network namespace of the process.
type Node struct {
	Site
	Wire    netns.NsHandle // where the other ends are, each named as its device
	devices map[string]*Device
}

// Build makes the devices, addresses, routes and neighbours of the site.
func (s Site) Build() (*Node, error) {
	wire, err := newNamespace()
	if err != nil {
		return nil, err
	}
	n := &Node{Site: s, Wire: wire, devices: make(map[string]*Device)}
	if err := n.configure(); err != nil {
		return nil, err
	}
	for _, spec := range s.Links {
		if err := n.addDevice(spec); err != nil {
			return nil, fmt.Errorf("make device %s: %w", spec.Name, err)
		}
	}
	for _, spec := range s.Routes {
		if err := n.addRoute(spec); err != nil {
			return nil, fmt.Errorf("add route %s: %w", spec.Prefix, err)
		}
	}
	for _, spec := range s.Neighbours {
		if err := n.addNeighbour(spec); err != nil {
			return nil, fmt.Errorf("add neighbour on %s: %w", spec.Device, err)
		}
	}
	return n, nil
}

// Device returns a device by its name.
func (n *Node) Device(name string) *Device { return n.devices[name] }

// Devices returns all devices by name.
func (n *Node) Devices() map[string]*Device { return n.devices }

// configure makes the namespace a router whose addresses are usable at once.
func (n *Node) configure() error {
	settings := map[string]string{
		"ipv4/ip_forward":                        "1",
		"ipv4/conf/all/rp_filter":                "0",
		"ipv4/conf/default/rp_filter":            "0",
		"ipv6/conf/all/forwarding":               "1",
		"ipv6/conf/default/forwarding":           "1",
		"ipv6/conf/all/accept_dad":               "0",
		"ipv6/conf/default/accept_dad":           "0",
		"ipv6/conf/default/router_solicitations": "0",
	}
	for path, value := range settings {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", path, err)
		}
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(loopback)
}

// addDevice makes a device, and what the agent would write about it.
func (n *Node) addDevice(spec LinkSpec) error {
	if spec.MTU == 0 {
		spec.MTU = 1500
	}
	if spec.Bridge {
		return n.addBridge(spec)
	}
	link, err := n.addVeth(spec)
	if err != nil {
		return err
	}
	if err := addAddresses(link, spec); err != nil {
		return err
	}
	device := n.remember(spec, link)
	device.Record.Edge = maps.EdgeNode
	if spec.Pod != 0 {
		device.Record.Edge, device.Record.EdgeId = maps.EdgePod, spec.Pod
	}
	return nil
}

// addBridge makes a bridge with one port; the port is the edge.
func (n *Node) addBridge(spec LinkSpec) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.HardwareAddr = spec.Name, spec.MAC
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	portSpec := spec
	portSpec.Name, portSpec.MAC, portSpec.XDP = spec.Name+"p", mac(spec.MAC[5]+0x80), true
	port, err := n.addVeth(portSpec)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("make it a port: %w", err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return err
	}
	if err := addAddresses(bridge, spec); err != nil {
		return err
	}
	master := n.remember(spec, bridge)
	device := n.remember(portSpec, port)
	device.Record.Edge = maps.EdgeNode
	device.Record.Master = uint32(master.Index)
	copy(device.Record.MasterMac[:], spec.MAC)
	return nil
}

// addVeth makes a pair of devices, up, and sends the other end to the wire.
func (n *Node) addVeth(spec LinkSpec) (netlink.Link, error) {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.HardwareAddr, attributes.MTU = spec.Name, spec.MAC, spec.MTU
	veth := &netlink.Veth{
		LinkAttrs:     attributes,
		PeerName:      spec.Name,
		PeerMTU:       uint32(spec.MTU),
		PeerNamespace: netlink.NsFd(n.Wire),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, err
	}
	wire, err := netlink.NewHandleAt(n.Wire, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink on the wire: %w", err)
	}
	defer wire.Close()
	peer, err := wire.LinkByName(spec.Name)
	if err != nil {
		return nil, fmt.Errorf("find the other end: %w", err)
	}
	if err := wire.LinkSetUp(peer); err != nil {
		return nil, fmt.Errorf("set the other end up: %w", err)
	}
	return veth, netlink.LinkSetUp(veth)
}

// prefixes are the prefix lengths of a device's addresses.
func (s LinkSpec) prefixes() (ipv4, ipv6 int) {
	if s.Pod != 0 {
		return 32, 128
	}
	return 24, 64
}

func addAddresses(link netlink.Link, spec LinkSpec) error {
	if !spec.Addresses.IPv4.IsValid() {
		return nil
	}
	bits4, bits6 := spec.prefixes()
	for _, prefix := range []netip.Prefix{
		netip.PrefixFrom(spec.Addresses.IPv4, bits4), netip.PrefixFrom(spec.Addresses.IPv6, bits6),
	} {
		address := &netlink.Addr{IPNet: ipNet(prefix), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, address); err != nil {
			return fmt.Errorf("add address %s: %w", prefix, err)
		}
	}
	return nil
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	address := prefix.Addr()
	return &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), address.BitLen())}
}

// remember notes a device under its name.
func (n *Node) remember(spec LinkSpec, link netlink.Link) *Device {
	device := &Device{LinkSpec: spec, Index: link.Attrs().Index}
	copy(device.Record.Mac[:], spec.MAC)
	if spec.Addresses.IPv4.IsValid() {
		device.Record.Ipv4 = maps.AddressOf(spec.Addresses.IPv4)
		device.Record.Ipv6 = maps.AddressOf(spec.Addresses.IPv6)
	}
	if spec.Router.IPv4.IsValid() {
		device.Record.RouterIpv4 = maps.AddressOf(spec.Router.IPv4)
		device.Record.RouterIpv6 = maps.AddressOf(spec.Router.IPv6)
	}
	device.Record.Mtu = uint32(spec.MTU)
	n.devices[spec.Name] = device
	return device
}

func (n *Node) addRoute(spec RouteSpec) error {
	prefix, err := netip.ParsePrefix(spec.Prefix)
	if err != nil {
		return err
	}
	route := &netlink.Route{Dst: ipNet(prefix), Type: routeKind(spec.Kind)}
	if spec.Device != "" {
		route.LinkIndex = n.devices[spec.Device].Index
	}
	if spec.Gateway != "" {
		route.Gw = net.ParseIP(spec.Gateway)
	}
	return netlink.RouteAdd(route)
}

func routeKind(kind string) int {
	switch kind {
	case "blackhole":
		return unix.RTN_BLACKHOLE
	case "throw":
		return unix.RTN_THROW
	default:
		return unix.RTN_UNICAST
	}
}

func (n *Node) addNeighbour(spec NeighbourSpec) error {
	for _, address := range []netip.Addr{spec.Address.IPv4, spec.Address.IPv6} {
		neighbour := &netlink.Neigh{
			LinkIndex:    n.devices[spec.Device].Index,
			IP:           address.AsSlice(),
			HardwareAddr: spec.MAC,
			State:        netlink.NUD_PERMANENT,
		}
		if err := netlink.NeighAdd(neighbour); err != nil {
			return fmt.Errorf("%s: %w", address, err)
		}
	}
	return nil
}
