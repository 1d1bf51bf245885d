package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/loader"
)

const (
	// bridgeName and overlayName are what CNIs call these devices.
	bridgeName  = "cni0"
	overlayName = "flannel.1"
	// overlayMTU leaves room for the vxlan header, over IPv4 and Ethernet.
	overlayMTU = 1450
	// hostSide starts the name of a pod's veth on its node.
	hostSide = "cali"
)

// podsOf is where a node's pods live.
type podsOf struct {
	node       *Host
	ipv4, ipv6 netip.Prefix
}

// local and remote are the pods' prefixes on node1 and node2.
func (l *Lab) local() podsOf {
	return podsOf{l.Node1, netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("fd00:10:1:1::/64")}
}

func (l *Lab) remote() podsOf {
	return podsOf{l.Node2, netip.MustParsePrefix("10.1.2.0/24"), netip.MustParsePrefix("fd00:10:1:2::/64")}
}

// addPods makes every pod and connects it to its node.
func (l *Lab) addPods() error {
	for _, pods := range []podsOf{l.local(), l.remote()} {
		if l.Options.Pods == Routed {
			continue
		}
		if err := l.addPodBridge(pods); err != nil {
			return err
		}
	}
	for i, role := range []string{"web1", "web2", "web3", "web4"} {
		pods := l.local()
		if i >= 2 {
			pods = l.remote()
		}
		pod, err := l.addPod(pods, role, 11+i)
		if err != nil {
			return err
		}
		l.Web = append(l.Web, pod)
	}
	var err error
	l.Toolbox, err = l.addPod(l.local(), "toolbox", 20)
	return err
}

// addPod makes a pod with the given number as the last byte of its addresses.
func (l *Lab) addPod(pods podsOf, role string, number int) (*Host, error) {
	pod, err := l.addHost(role, nth(pods.ipv4, number).String(), nth(pods.ipv6, number).String())
	if err != nil {
		return nil, err
	}
	pod.node = pods.node
	if err := l.enterCgroup(pod); err != nil {
		return nil, err
	}
	if err := addVeth(pod, "eth0", pods.node, hostSide+role); err != nil {
		return nil, err
	}
	join := l.joinRouted
	if l.Options.Pods != Routed {
		join = l.joinBridge
	}
	if err := join(pods, pod); err != nil {
		return nil, fmt.Errorf("connect pod %s: %w", role, err)
	}
	return pod, nil
}

// joinRouted gives the pod a /32 and a gateway that only proxy ARP answers for, and the node a route to it.
func (l *Lab) joinRouted(pods podsOf, pod *Host) error {
	device := hostSide + pod.Role
	gateway6, err := pods.node.linkLocal(device)
	if err != nil {
		return err
	}
	gateway4 := netip.MustParseAddr("169.254.1.1")
	return errors.Join(
		pods.node.Sysctl("net/ipv4/conf/"+device+"/proxy_arp", "1"),
		pods.node.Sysctl("net/ipv4/neigh/"+device+"/proxy_delay", "0"),
		pod.addAddress("eth0", hostPrefix(pod.IPv4), hostPrefix(pod.IPv6)),
		pod.addRoutes("eth0", route{to: hostPrefix(gateway4)}),
		pod.addDefaultRoutes("eth0", gateway4, gateway6),
		pods.node.addRoutes(device, route{to: hostPrefix(pod.IPv4)}, route{to: hostPrefix(pod.IPv6)}),
	)
}

// joinBridge puts the pod behind the node's bridge, which is its gateway.
func (l *Lab) joinBridge(pods podsOf, pod *Host) error {
	return errors.Join(
		l.setOverlayMTU(pod, "eth0"),
		l.setOverlayMTU(pods.node, hostSide+pod.Role),
		pods.node.addPort(bridgeName, hostSide+pod.Role),
		pod.addAddress("eth0", netip.PrefixFrom(pod.IPv4, 24), netip.PrefixFrom(pod.IPv6, 64)),
		pod.addDefaultRoutes("eth0", nth(pods.ipv4, 1), nth(pods.ipv6, 1)),
	)
}

// addPodBridge makes cni0 with the gateway's addresses.
func (l *Lab) addPodBridge(pods podsOf) error {
	if err := pods.node.addBridge(bridgeName); err != nil {
		return err
	}
	return errors.Join(
		l.setOverlayMTU(pods.node, bridgeName),
		pods.node.addAddress(bridgeName, netip.PrefixFrom(nth(pods.ipv4, 1), 24), netip.PrefixFrom(nth(pods.ipv6, 1), 64)),
	)
}

// setOverlayMTU makes a device of pods fit the overlay, where there is one.
func (l *Lab) setOverlayMTU(h *Host, device string) error {
	if l.Options.Pods != Overlay {
		return nil
	}
	link, err := h.Link(device)
	if err != nil {
		return err
	}
	return h.links.LinkSetMTU(link, overlayMTU)
}

// routeBetweenNodes makes each node's pods reachable from the other node.
func (l *Lab) routeBetweenNodes() error {
	if l.Options.Pods == Overlay {
		return l.addOverlay()
	}
	return errors.Join(
		l.Node1.addRoutes(l.NodesDevice(), routesTo(l.remote(), l.Node2.IPv4, l.Node2.IPv6)...),
		l.Node2.addRoutes("eth0", routesTo(l.local(), l.Node1Inner, l.Node1Inner6)...),
	)
}

// routesTo lists the routes to a node's pods.
func routesTo(pods podsOf, via4, via6 netip.Addr) []route {
	return []route{{to: pods.ipv4, via: via4}, {to: pods.ipv6, via: via6}}
}

// addOverlay connects the nodes' pods by vxlan, with the entries that flannel's daemon would write.
func (l *Lab) addOverlay() error {
	underlay1, underlay2 := l.Node1Inner, l.Node2.IPv4
	device := "eth1"
	if l.Options.OneNetwork {
		device = "eth0"
	}
	local, remote := l.local(), l.remote()
	if err := addVxlan(local, device, underlay1); err != nil {
		return err
	}
	if err := addVxlan(remote, "eth0", underlay2); err != nil {
		return err
	}
	l.Node1Inner, l.Node1Inner6 = local.ipv4.Addr(), local.ipv6.Addr()
	return errors.Join(
		pointVxlan(local, remote, underlay2),
		pointVxlan(remote, local, underlay1),
	)
}

// addVxlan makes the overlay device of a node. Its addresses are the first of the pods' prefixes, as flannel's.
func addVxlan(pods podsOf, device string, underlay netip.Addr) error {
	parent, err := pods.node.Link(device)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = overlayName, overlayMTU
	overlay := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, VtepDevIndex: parent.Attrs().Index, SrcAddr: underlay.AsSlice(), Port: 8472}
	if err := pods.node.links.LinkAdd(overlay); err != nil {
		return fmt.Errorf("add %s in %s: %w", overlayName, pods.node.Name, err)
	}
	return errors.Join(
		pods.node.setUp(overlayName),
		pods.node.addAddress(overlayName, hostPrefix(pods.ipv4.Addr()), hostPrefix(pods.ipv6.Addr())),
	)
}

// pointVxlan tells one end of the overlay where the pods of the other are.
func pointVxlan(from, to podsOf, underlay netip.Addr) error {
	near, err := from.node.Link(overlayName)
	if err != nil {
		return err
	}
	far, err := to.node.Link(overlayName)
	if err != nil {
		return err
	}
	index, mac := near.Attrs().Index, far.Attrs().HardwareAddr
	links := from.node.links
	return errors.Join(
		links.NeighAppend(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: underlay.AsSlice(), HardwareAddr: mac}),
		links.NeighSet(permanent(index, to.ipv4.Addr(), mac)),
		links.NeighSet(permanent(index, to.ipv6.Addr(), mac)),
		from.node.addRoutes(overlayName,
			route{to: to.ipv4, via: to.ipv4.Addr(), onlink: true},
			route{to: to.ipv6, via: to.ipv6.Addr(), onlink: true}),
	)
}

// permanent is a neighbour entry that stays.
func permanent(index int, address netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: address.AsSlice(), HardwareAddr: mac}
}

// linkLocal returns the IPv6 link-local address of a device, which the kernel gives it when both its ends are up.
func (h *Host) linkLocal(device string) (found netip.Addr, err error) {
	err = poll(readyLimit, func() error {
		found, err = h.findLinkLocal(device)
		return err
	})
	return found, err
}

func (h *Host) findLinkLocal(device string) (netip.Addr, error) {
	link, err := h.Link(device)
	if err != nil {
		return netip.Addr{}, err
	}
	addresses, err := loader.DumpWhole(func() ([]netlink.Addr, error) { return h.links.AddrList(link, netlink.FAMILY_V6) })
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of %s in %s: %w", device, h.Name, err)
	}
	for _, a := range addresses {
		if address, ok := netip.AddrFromSlice(a.IP); ok && address.IsLinkLocalUnicast() {
			return address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s in %s has no link-local address", device, h.Name)
}

// nth returns the address with that number in a prefix.
func nth(prefix netip.Prefix, number int) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	bytes[len(bytes)-1] += byte(number)
	address, _ := netip.AddrFromSlice(bytes)
	return address
}
