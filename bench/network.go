package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

/*
The network that the programs look up routes in, in a network namespace of its own without a name: it goes
with the thread that is in it, whatever ends the process.

	clients, remote backends -- gateway -- uplink [ node ] pod -- a pod

Addresses are those set aside for benchmarks (RFC 2544, RFC 5180).
*/
type network struct {
	links       *netlink.Handle
	uplink, pod netlink.Link
	gateway     net.HardwareAddr // on the far end of the uplink
	podMAC      net.HardwareAddr // on the far end of pod
	xdp         link.Link
}

// addresses are what one family's addresses in the network are.
type addresses struct {
	clients  netip.Addr // the first of 65536
	pods     netip.Addr // likewise, clients that are pods
	vip      netip.Addr // of services
	nobody   netip.Addr // of no service
	node     netip.Prefix
	gateway  netip.Addr
	backends netip.Addr // the first of 256 and more
	anywhere netip.Prefix
}

func addressesOf(family compile.Family) addresses {
	if family == compile.IPv6 {
		return addresses{
			clients:  netip.MustParseAddr("2001:2:0:1::"),
			pods:     netip.MustParseAddr("2001:2:0:2::"),
			vip:      netip.MustParseAddr("2001:2:0:3::1"),
			nobody:   netip.MustParseAddr("2001:2:0:3::2"),
			backends: netip.MustParseAddr("2001:2:0:4::1"),
			node:     netip.MustParsePrefix("2001:2:0:5::1/64"),
			gateway:  netip.MustParseAddr("2001:2:0:5::2"),
			anywhere: netip.MustParsePrefix("::/0"),
		}
	}
	return addresses{
		clients:  netip.MustParseAddr("198.18.0.0"),
		pods:     netip.MustParseAddr("100.64.0.0"),
		vip:      netip.MustParseAddr("198.19.0.1"),
		nobody:   netip.MustParseAddr("198.19.0.2"),
		backends: netip.MustParseAddr("198.19.16.1"),
		node:     netip.MustParsePrefix("198.19.255.1/24"),
		gateway:  netip.MustParseAddr("198.19.255.2"),
		anywhere: netip.MustParsePrefix("0.0.0.0/0"),
	}
}

// families are both.
func families() []compile.Family { return []compile.Family{compile.IPv4, compile.IPv6} }

// newNetwork moves the calling thread into a new network namespace and builds the network there. The goroutine
// must be locked to the thread and stay so until it ends, which ends the thread.
func newNetwork() (*network, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n := &network{links: links}
	if err := n.build(); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *network) build() error {
	for path, value := range map[string]string{
		"ipv4/conf/all/forwarding":     "1",
		"ipv6/conf/all/forwarding":     "1",
		"ipv6/conf/default/accept_dad": "0",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", path, err)
		}
	}
	var err error
	if n.uplink, n.gateway, err = n.addVeth("uplink", "gateway"); err != nil {
		return err
	}
	if n.pod, n.podMAC, err = n.addVeth("pod", "inpod"); err != nil {
		return err
	}
	for _, family := range families() {
		if err := n.address(addressesOf(family)); err != nil {
			return err
		}
	}
	return n.receiveXDP()
}

// addVeth makes a pair of devices, both up. It returns the first, and the other's MAC.
func (n *network) addVeth(name, peer string) (netlink.Link, net.HardwareAddr, error) {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	if err := n.links.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: peer}); err != nil {
		return nil, nil, fmt.Errorf("make device %s: %w", name, err)
	}
	var ends [2]netlink.Link
	for i, end := range []string{name, peer} {
		device, err := n.links.LinkByName(end)
		if err != nil {
			return nil, nil, fmt.Errorf("find device %s: %w", end, err)
		}
		if err := n.links.LinkSetUp(device); err != nil {
			return nil, nil, fmt.Errorf("set device %s up: %w", end, err)
		}
		ends[i] = device
	}
	return ends[0], ends[1].Attrs().HardwareAddr, nil
}

// address gives the node its address and the way to everybody else.
func (n *network) address(a addresses) error {
	index := n.uplink.Attrs().Index
	node := &netlink.Addr{IPNet: ipNet(a.node), Flags: unix.IFA_F_NODAD}
	if err := n.links.AddrAdd(n.uplink, node); err != nil {
		return fmt.Errorf("add address %s: %w", a.node, err)
	}
	neighbour := &netlink.Neigh{
		LinkIndex: index, State: netlink.NUD_PERMANENT, IP: a.gateway.AsSlice(), HardwareAddr: n.gateway,
	}
	if err := n.links.NeighSet(neighbour); err != nil {
		return fmt.Errorf("add neighbour %s: %w", a.gateway, err)
	}
	route := &netlink.Route{LinkIndex: index, Dst: ipNet(a.anywhere), Gw: a.gateway.AsSlice()}
	if err := n.links.RouteAdd(route); err != nil {
		return fmt.Errorf("add a route by %s: %w", a.gateway, err)
	}
	return nil
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	address := prefix.Addr()
	return &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), address.BitLen())}
}

// receiveXDP attaches a program to the uplink: only then has a veth the receive queue that a run of an XDP
// program names.
func (n *network) receiveXDP() error {
	empty, err := loadEmpty(xdp)
	if err != nil {
		return err
	}
	defer empty.Close()
	n.xdp, err = link.AttachXDP(link.XDPOptions{Program: empty, Interface: n.uplink.Attrs().Index})
	if err != nil {
		return fmt.Errorf("attach the empty program: %w", err)
	}
	return nil
}

// close lets go of what outlives the thread.
func (n *network) close() error {
	n.links.Close()
	if n.xdp == nil {
		return nil
	}
	return n.xdp.Close()
}
