package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weir-lb/weir/maps"
)

// UplinkDevice is node1's second way to the world.
const UplinkDevice = "eth2"

// The second uplink's network, and who is behind the router there.
var (
	uplink4       = netip.MustParsePrefix("198.18.4.1/24")
	uplink6       = netip.MustParsePrefix("2001:db8:7::1/64")
	uplinkRouter4 = netip.MustParsePrefix("198.18.4.10/24")
	uplinkRouter6 = netip.MustParsePrefix("2001:db8:7::10/64")
)

// AddUplink gives node1 a second uplink, and returns a client, and server, that is behind it and nowhere else: of another network than
// the uplink's, so that node1's default route, by eth0, does not lead there. By itself node1 has no way to it at all; see
// RouteByRule and RouteByMetric.
func (l *Lab) AddUplink() (*Host, error) {
	guest, err := l.addHost("guest", "198.18.5.10", "2001:db8:8::10")
	if err != nil {
		return nil, err
	}
	return guest, errors.Join(
		guest.addAddress("lo", hostPrefix(guest.IPv4), hostPrefix(guest.IPv6)),
		l.ConnectUplink(guest),
		l.addServersOn(guest))
}

// ConnectUplink makes the wire between node1 and the client behind its second uplink.
func (l *Lab) ConnectUplink(guest *Host) error {
	if err := addVeth(guest, "eth0", l.Node1, UplinkDevice); err != nil {
		return err
	}
	if err := errors.Join(
		guest.addAddress("eth0", uplinkRouter4, uplinkRouter6),
		l.Node1.addAddress(UplinkDevice, uplink4, uplink6),
		guest.addRoutes("eth0",
			route{to: netip.MustParsePrefix("0.0.0.0/0"), via: uplink4.Addr(), source: guest.IPv4},
			route{to: netip.MustParsePrefix("::/0"), via: uplink6.Addr(), source: guest.IPv6}),
	); err != nil {
		return err
	}
	if l.Options.Netfilter {
		// What comes by an uplink that the best route does not lead out of is refused by 1.
		if err := l.Node1.Sysctl("net/ipv4/conf/"+UplinkDevice+"/rp_filter", "2"); err != nil {
			return err
		}
	}
	if !l.Options.RealNICs {
		return nil
	}
	return errors.Join(wireEnd{guest, "eth0"}.completeChecksums(), l.passXDP(guest, "eth0"))
}

// DisconnectUplink takes that wire away.
func (l *Lab) DisconnectUplink() error {
	link, err := l.Node1.Link(UplinkDevice)
	if err != nil {
		return err
	}
	if err := l.Node1.links.LinkDel(link); err != nil {
		return fmt.Errorf("remove %s of %s: %w", UplinkDevice, l.Node1.Name, err)
	}
	return nil
}

// uplinkTable is the routing table of the second uplink.
const uplinkTable = 100

// RouteByRule makes what node1 sends from its address on the second uplink leave there, as multi-homed hosts do: by a
// table of the uplink's own.
func (l *Lab) RouteByRule() error {
	table := strconv.Itoa(uplinkTable)
	var err error
	for _, way := range [][2]netip.Addr{{uplink4.Addr(), uplinkRouter4.Addr()}, {uplink6.Addr(), uplinkRouter6.Addr()}} {
		err = errors.Join(err,
			l.Node1.ip(way[0], "route", "add", "default", "via", way[1].String(), "dev", UplinkDevice, "table", table),
			l.Node1.ip(way[0], "rule", "add", "from", way[0].String(), "lookup", table))
	}
	return err
}

// RouteByMetric makes the second uplink a default route that is worse than the first.
func (l *Lab) RouteByMetric() error {
	var err error
	for _, router := range []netip.Addr{uplinkRouter4.Addr(), uplinkRouter6.Addr()} {
		err = errors.Join(err,
			l.Node1.ip(router, "route", "add", "default", "via", router.String(), "dev", UplinkDevice, "metric", "2000"))
	}
	return err
}

// ip runs a command of iproute2 about the family of an address.
func (h *Host) ip(family netip.Addr, args ...string) error {
	flag := "-4"
	if family.Is6() {
		flag = "-6"
	}
	_, err := h.Run("", "ip", append([]string{flag}, args...)...)
	return err
}

// UplinkAddr returns node1's address on its second uplink.
func (l *Lab) UplinkAddr(v6 bool) netip.Addr {
	if v6 {
		return uplink6.Addr()
	}
	return uplink4.Addr()
}

// WaitUplink waits until the agent serves the second uplink: programs are on it, and NodePorts answer there.
func (a *Agent) WaitUplink() error {
	return a.wait(func() error {
		for _, address := range []netip.Addr{uplink4.Addr(), uplink6.Addr()} {
			if err := a.AnswersOn(address); err != nil {
				return err
			}
		}
		attached, err := a.Node.Attached()
		if err != nil {
			return err
		}
		programs := 0
		for _, what := range attached {
			if strings.HasPrefix(what, UplinkDevice+": ") {
				programs++
			}
		}
		if programs == 0 || a.lab.Options.RealNICs && programs < 2 {
			return fmt.Errorf("%s is not served: %v", UplinkDevice, attached)
		}
		return nil
	})
}

// AnswersOn tells whether NodePorts answer on an address of the node. The error is ebpf.ErrKeyNotExist where they do not.
func (a *Agent) AnswersOn(address netip.Addr) error {
	var device uint32
	return a.lookup("node_addrs", maps.AddressOf(address), &device)
}

// RoutePodByUplink makes what a pod sends leave by the second uplink, as clouds do whose pods' addresses belong to one
// interface each: by a rule for its address, or, where marked, for the mark that netfilter gives its packets. A node
// that does so cannot refuse what comes by another device than answers of its own would take.
func (l *Lab) RoutePodByUplink(pod *Host, marked bool) (undo func() error, err error) {
	rules := [][]string{}
	table := strconv.Itoa(uplinkTable)
	for _, address := range []netip.Addr{pod.IPv4, pod.IPv6} {
		rule := []string{"from", address.String(), "lookup", table}
		if marked {
			rule = []string{"fwmark", podMark, "lookup", table}
		}
		rules = append(rules, rule)
		err = errors.Join(err, l.Node1.ip(address, append([]string{"rule", "add"}, rule...)...))
	}
	if marked {
		_, failed := l.Node1.Run(fmt.Sprintf(markRules, pod.IPv4, podMark, pod.IPv6, podMark), "nft", "-f", "-")
		err = errors.Join(err, failed)
	}
	if l.Options.Netfilter {
		err = errors.Join(err, l.Node1.Sysctl("net/ipv4/conf/eth0/rp_filter", "2"))
	}
	undo = func() (err error) {
		for i, address := range []netip.Addr{pod.IPv4, pod.IPv6} {
			err = errors.Join(err, l.Node1.ip(address, append([]string{"rule", "delete"}, rules[i]...)...))
		}
		if marked {
			_, failed := l.Node1.Run("", "nft", "delete", "table", "inet", "marks")
			err = errors.Join(err, failed)
		}
		return err
	}
	return undo, err
}

// podMark is the mark of a pod's packets, as clouds' CNIs use it.
const podMark = "0x80"

// markRules mark what a pod sends.
const markRules = `
table inet marks {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		ip saddr %s meta mark set %s
		ip6 saddr %s meta mark set %s
	}
}
`

// CountPacketsTo begins to count what comes to a host for an address that is not its own. The function tells how many
// packets have come.
func (h *Host) CountPacketsTo(address netip.Addr) (count func() (int, error), err error) {
	family := "ip"
	if address.Is6() {
		family = "ip6"
	}
	table := "passersby-" + family
	rules := fmt.Sprintf(passersbyRules, table, family, address)
	if _, err := h.Run(rules, "nft", "-f", "-"); err != nil {
		return nil, err
	}
	return func() (int, error) {
		said, err := h.Run("", "nft", "list", "counter", "inet", table, "seen")
		if err != nil {
			return 0, err
		}
		_, after, _ := strings.Cut(said, "packets ")
		number, _, _ := strings.Cut(after, " ")
		return strconv.Atoi(number)
	}, nil
}

// passersbyRules count what is for an address.
const passersbyRules = `
table inet %s {
	counter seen { }
	chain prerouting {
		type filter hook prerouting priority 0; policy accept;
		%s daddr %s counter name seen
	}
}
`
