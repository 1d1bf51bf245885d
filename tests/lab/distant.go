package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/loader"
)

// distantDevice is the client's device toward the host behind it.
const distantDevice = "distant"

// AddDistant makes another client, behind the first one, which becomes its router.
func (l *Lab) AddDistant() (*Host, error) {
	distant, err := l.addHost("distant", "198.18.3.10", "2001:db8:6::10")
	if err != nil {
		return nil, err
	}
	if err := addVeth(distant, "eth0", l.Client, distantDevice); err != nil {
		return nil, err
	}
	router4, router6 := netip.MustParsePrefix("198.18.3.1/24"), netip.MustParsePrefix("2001:db8:6::1/64")
	return distant, errors.Join(
		l.enterCgroup(distant),
		forwardPackets(l.Client),
		l.Client.addAddress(distantDevice, router4, router6),
		distant.addAddress("eth0", netip.PrefixFrom(distant.IPv4, 24), netip.PrefixFrom(distant.IPv6, 64)),
		distant.addDefaultRoutes("eth0", router4.Addr(), router6.Addr()),
	)
}

// Narrow makes the link between a router and the host behind it one that takes only packets of that size. The host
// sends none that are longer, and does not know that it gets none: its peers have to find out.
func (h *Host) Narrow(mtu int, behind *Host) error {
	device := distantDevice
	if behind.node != nil {
		device = hostSide + behind.Role
	}
	link, err := h.Link(device)
	if err != nil {
		return err
	}
	if err := h.links.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set the MTU of %s in %s: %w", device, h.Name, err)
	}
	return errors.Join(behind.narrowDefault(unix.AF_INET, mtu, 1460), behind.narrowDefault(unix.AF_INET6, mtu, 1440))
}

// narrowDefault gives a host's default route an MTU, and the segment size of a larger one for its peers.
func (h *Host) narrowDefault(family, mtu, segment int) error {
	routes, err := loader.DumpWhole(func() ([]netlink.Route, error) { return h.links.RouteList(nil, family) })
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", h.Name, err)
	}
	for _, r := range routes {
		if r.Gw == nil || r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		narrow := netlink.Route{LinkIndex: r.LinkIndex, Dst: r.Dst, Gw: r.Gw, Priority: r.Priority, MTU: mtu, AdvMSS: segment}
		if err := h.links.RouteReplace(&narrow); err != nil {
			return fmt.Errorf("give the default route of %s an MTU: %w", h.Name, err)
		}
	}
	return nil
}

// ForgetPaths makes a host forget what it has learned of the paths to others: their MTUs.
func (h *Host) ForgetPaths() error {
	for _, family := range []string{"-4", "-6"} {
		if _, err := h.Run("", "ip", family, "route", "flush", "cache"); err != nil {
			return err
		}
	}
	return nil
}
