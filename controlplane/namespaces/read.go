package namespaces

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is what is known of a network namespace.
type namespace struct {
	cookie    uint64
	ipv4      netip.Addr // what its sockets have as a source by default; invalid if it has none
	ipv6      netip.Addr
	addresses map[netip.Addr]int // all of them, with the devices
	ipvs      int                // the device on which kube-proxy has ClusterIPs that nobody listens on; 0: none
}

// Somewhere that only a default route leads to: addresses of no network, for ever.
var (
	anywhere4 = net.IPv4(240, 0, 0, 1)
	anywhere6 = net.ParseIP("3fff::1")
)

// Cookie returns the cookie of the calling thread's network namespace. Before Linux 5.14 there is none to be had.
func Cookie() (uint64, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(socket)
	cookie, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie: %w", err)
	}
	return cookie, nil
}

// readNamespace reads about the calling thread's network namespace.
func readNamespace() (namespace, error) {
	var n namespace
	var err error
	if n.cookie, err = Cookie(); err != nil {
		return n, err
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return n, fmt.Errorf("open netlink: %w", err)
	}
	defer links.Close()
	all, err := links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return n, fmt.Errorf("list addresses: %w", err)
	}
	if link, err := links.LinkByName("kube-ipvs0"); err == nil {
		n.ipvs = link.Attrs().Index
	}
	n.ipv4, n.ipv6 = sourceOf(links, anywhere4), sourceOf(links, anywhere6)
	n.addresses = map[netip.Addr]int{}
	for _, a := range all {
		address, valid := netip.AddrFromSlice(a.IP)
		address = address.Unmap()
		if !valid || !address.IsGlobalUnicast() {
			continue
		}
		n.addresses[address] = a.LinkIndex
		if address.Is4() && !n.ipv4.IsValid() {
			n.ipv4 = address
		} else if address.Is6() && !n.ipv6.IsValid() {
			n.ipv6 = address
		}
	}
	return n, nil
}

// sourceOf returns the source that the routes give to what goes anywhere; invalid if none leads there.
func sourceOf(links *netlink.Handle, anywhere net.IP) netip.Addr {
	routes, err := links.RouteGet(anywhere)
	if err != nil || len(routes) == 0 {
		return netip.Addr{}
	}
	source, _ := netip.AddrFromSlice(routes[0].Src)
	return source.Unmap()
}
