package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/weir-lb/weir/loader"
)

// nodeRules are what a real node has: INVALID is dropped, only pods' packets are forwarded, and pods are hidden
// behind the node's address when they talk to the world, each connection on a port of its own choosing.
const nodeRules = `
table inet node {
	set pods4 { type ipv4_addr; flags interval; elements = { 10.1.0.0/16 }; }
	set pods6 { type ipv6_addr; flags interval; elements = { fd00:10:1::/48 }; }
	counter invalid { }
	counter refused { }

	chain input {
		type filter hook input priority filter; policy accept;
		ct state invalid counter name invalid drop
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state invalid counter name invalid drop
		ip saddr @pods4 accept
		ip daddr @pods4 accept
		ip6 saddr @pods6 accept
		ip6 daddr @pods6 accept
		counter name refused drop
	}
	chain output {
		type filter hook output priority filter; policy accept;
		ct state invalid counter name invalid drop
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @pods4 ip daddr != @pods4 masquerade fully-random
		ip6 saddr @pods6 ip6 daddr != @pods6 masquerade fully-random
	}
}
`

// addNetfilter applies the node's rules, or makes sure that nothing of netfilter is in the way.
func (l *Lab) addNetfilter() error {
	for _, node := range l.Nodes() {
		if err := node.addNetfilter(l.Options.Netfilter); err != nil {
			return err
		}
	}
	return nil
}

// addNetfilter is Lab.addNetfilter for one node.
func (h *Host) addNetfilter(rules bool) error {
	if !rules {
		return h.filterBridge("0")
	}
	if _, err := h.Run(nodeRules, "nft", "-f", "-"); err != nil {
		return err
	}
	return errors.Join(h.filterBridge("1"), h.filterReversePath())
}

// filterBridge says whether bridged packets pass through netfilter too, as Kubernetes asks of its nodes.
func (h *Host) filterBridge(value string) error {
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil { // of this process's namespace: all have it, or none
		if _, err := h.Run("", "modprobe", "br_netfilter"); err != nil {
			return err
		}
	}
	return errors.Join(
		h.Sysctl("net/bridge/bridge-nf-call-iptables", value),
		h.Sysctl("net/bridge/bridge-nf-call-ip6tables", value),
	)
}

// filterReversePath makes the node refuse packets whose sender is not behind the device they came in by.
func (h *Host) filterReversePath() error {
	links, err := loader.DumpWhole(h.links.LinkList)
	if err != nil {
		return fmt.Errorf("list links of %s: %w", h.Name, err)
	}
	err = h.Sysctl("net/ipv4/conf/all/rp_filter", "1")
	for _, link := range links {
		// A dot in a name is a slash in the path, and the other way round: the file is as named.
		name := strings.ReplaceAll(link.Attrs().Name, "/", ".")
		err = errors.Join(err, h.Sysctl("net/ipv4/conf/"+name+"/rp_filter", "1"))
	}
	return err
}
