package lab

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/loader"
)

// addVeth connects two hosts by a pair of veths and brings both ends up.
func addVeth(a *Host, aName string, b *Host, bName string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.handle)}
	if err := a.links.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth %s in %s to %s in %s: %w", aName, a.Name, bName, b.Name, err)
	}
	return errors.Join(a.setUp(aName), b.setUp(bName))
}

// setUp brings a device up.
func (h *Host) setUp(name string) error {
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	if err := h.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up in %s: %w", name, h.Name, err)
	}
	return nil
}

// setMTU gives every veth of the lab the MTU that the options ask for.
func (l *Lab) setMTU() error {
	if l.Options.MTU == 0 {
		return nil
	}
	for _, host := range append([]*Host{l.Client, l.Node1, l.Node2, l.Toolbox}, l.Web...) {
		links, err := loader.DumpWhole(host.links.LinkList)
		if err != nil {
			return fmt.Errorf("list links of %s: %w", host.Name, err)
		}
		for _, link := range links {
			if link.Type() != "veth" {
				continue
			}
			if err := host.links.LinkSetMTU(link, l.Options.MTU); err != nil {
				return fmt.Errorf("set the MTU of %s in %s: %w", link.Attrs().Name, host.Name, err)
			}
		}
	}
	return nil
}

// AddAddress gives a device an address that is alone in its network.
func (h *Host) AddAddress(device string, address netip.Addr) error {
	return h.addAddress(device, hostPrefix(address))
}

// RemoveAddress takes such an address away again.
func (h *Host) RemoveAddress(device string, address netip.Addr) error {
	link, err := h.Link(device)
	if err != nil {
		return err
	}
	if err := h.links.AddrDel(link, &netlink.Addr{IPNet: ipNet(hostPrefix(address))}); err != nil {
		return fmt.Errorf("remove %s from %s in %s: %w", address, device, h.Name, err)
	}
	return nil
}

// addAddress gives a device addresses, usable at once.
func (h *Host) addAddress(device string, prefixes ...netip.Prefix) error {
	link, err := h.Link(device)
	if err != nil {
		return err
	}
	for _, prefix := range prefixes {
		address := &netlink.Addr{IPNet: ipNet(prefix), Flags: unix.IFA_F_NODAD}
		if err := h.links.AddrAdd(link, address); err != nil {
			return fmt.Errorf("add %s to %s in %s: %w", prefix, device, h.Name, err)
		}
	}
	return nil
}

// addSecondary gives a device an address that is used only by those who ask for it.
func (h *Host) addSecondary(device string, prefix netip.Prefix) error {
	link, err := h.Link(device)
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: ipNet(prefix), Flags: unix.IFA_F_NODAD, ValidLft: math.MaxUint32}
	if err := h.links.AddrAdd(link, address); err != nil {
		return fmt.Errorf("add %s to %s in %s: %w", prefix, device, h.Name, err)
	}
	return nil
}

// route describes a route by what is not usual about it.
type route struct {
	to     netip.Prefix
	via    netip.Addr // invalid: directly on the device
	source netip.Addr // that the host's own packets have; invalid: the kernel's choice
	onlink bool       // via is reached by the device whatever the routes say
}

// addRoutes adds routes out of a device.
func (h *Host) addRoutes(device string, routes ...route) error {
	link, err := h.Link(device)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if err := h.links.RouteAdd(r.by(link)); err != nil {
			return fmt.Errorf("add route to %s by %s in %s: %w", r.to, device, h.Name, err)
		}
	}
	return nil
}

// by returns the route out of a device.
func (r route) by(link netlink.Link) *netlink.Route {
	entry := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.to)}
	if r.via.IsValid() {
		entry.Gw = r.via.AsSlice()
	} else if r.to.Addr().Is4() {
		entry.Scope = netlink.SCOPE_LINK
	}
	if r.source.IsValid() {
		entry.Src = r.source.AsSlice()
	}
	if r.onlink {
		entry.SetFlag(netlink.FLAG_ONLINK)
	}
	return entry
}

// replaceRoute makes a route the one to where it leads.
func (h *Host) replaceRoute(device string, r route) error {
	link, err := h.Link(device)
	if err != nil {
		return err
	}
	if err := h.links.RouteReplace(r.by(link)); err != nil {
		return fmt.Errorf("replace the route to %s by %s in %s: %w", r.to, device, h.Name, err)
	}
	return nil
}

// addDefaultRoutes adds the default route of both families.
func (h *Host) addDefaultRoutes(device string, via4, via6 netip.Addr) error {
	return h.addRoutes(device,
		route{to: netip.MustParsePrefix("0.0.0.0/0"), via: via4},
		route{to: netip.MustParsePrefix("::/0"), via: via6},
	)
}

// addBridge makes a bridge, up.
func (h *Host) addBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := h.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s in %s: %w", name, h.Name, err)
	}
	return h.setUp(name)
}

// addPort puts a device into a bridge.
func (h *Host) addPort(bridge, device string) error {
	master, err := h.Link(bridge)
	if err != nil {
		return err
	}
	port, err := h.Link(device)
	if err != nil {
		return err
	}
	if err := h.links.LinkSetMaster(port, master); err != nil {
		return fmt.Errorf("put %s into %s in %s: %w", device, bridge, h.Name, err)
	}
	return nil
}

// ipNet turns a prefix into what netlink takes.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hostPrefix is the prefix of one address.
func hostPrefix(address netip.Addr) netip.Prefix { return netip.PrefixFrom(address, address.BitLen()) }

// Touch changes something harmless of a device, so that everybody who listens hears of it.
func (h *Host) Touch(device string) error {
	link, err := h.Link(device)
	if err != nil {
		return err
	}
	if err := h.links.LinkSetAlias(link, "touched"); err != nil {
		return fmt.Errorf("set the alias of %s in %s: %w", device, h.Name, err)
	}
	return nil
}
