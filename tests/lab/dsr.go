package lab

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/loader"
)

// takesPartInDSR tells whether an agent runs with --forward dsr.
func takesPartInDSR(args []string) bool {
	at := slices.Index(args, "--forward")
	return at >= 0 && slices.Contains(args[at:], "dsr")
}

// tunnelSources returns the addresses that a node's tunnels may come from, and the networks of its bridges, as the
// annotation of its Node says them.
func (h *Host) tunnelSources() (string, error) {
	var sources []string
	err := h.Do(func() error {
		links, err := loader.DumpWhole(netlink.LinkList)
		if err != nil {
			return err
		}
		for _, link := range links {
			some, err := sourcesOn(link)
			if err != nil {
				return err
			}
			sources = append(sources, some...)
		}
		return nil
	})
	slices.Sort(sources)
	return strings.Join(slices.Compact(sources), ","), err
}

// sourcesOn returns those of one device.
func sourcesOn(link netlink.Link) ([]string, error) {
	addresses, err := loader.DumpWhole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var sources []string
	for _, address := range addresses {
		ip, _ := netip.AddrFromSlice(address.IP)
		if ip = ip.Unmap(); address.Scope != unix.RT_SCOPE_UNIVERSE || ip.IsLoopback() {
			continue
		}
		sources = append(sources, ip.String())
		if ones, _ := address.Mask.Size(); link.Type() == "bridge" {
			sources = append(sources, netip.PrefixFrom(ip, ones).Masked().String())
		}
	}
	return sources, nil
}
