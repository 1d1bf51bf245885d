// Package detectlocal says which traffic that arrives at the node edge counts as inside: as a pod's, for which external
// traffic policies do not apply (rules C03, P03, P09). The modes are kube-proxy's. What pods of this node send by their
// own devices, and its processes, is inside in every mode.
package detectlocal

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Mode is how a pod's traffic is told.
type Mode string

// The modes of kube-proxy.
const (
	None                Mode = "" // nothing that arrives at the node edge is inside
	ClusterCIDR         Mode = "ClusterCIDR"
	NodeCIDR            Mode = "NodeCIDR"
	BridgeInterface     Mode = "BridgeInterface"
	InterfaceNamePrefix Mode = "InterfaceNamePrefix"
)

// Settings are the flags, as they were given.
type Settings struct {
	Mode            string
	ClusterCIDR     string // prefixes with commas between
	BridgeInterface string
	NamePrefix      string // of devices
}

// Detector is a mode with what belongs to it.
type Detector struct {
	mode   Mode
	cidrs  []netip.Prefix
	device string // the bridge, or what its name begins with
}

// Parse reads the settings. Without a mode, a cluster CIDR counts, as with kube-proxy.
func Parse(s Settings) (Detector, error) {
	d := Detector{mode: Mode(s.Mode)}
	switch d.mode {
	case None:
		if s.ClusterCIDR != "" {
			d.mode = ClusterCIDR
		}
	case ClusterCIDR, NodeCIDR:
	case BridgeInterface:
		d.device = s.BridgeInterface
	case InterfaceNamePrefix:
		d.device = s.NamePrefix
	default:
		return d, fmt.Errorf("mode %q is unknown: use %s, %s, %s or %s", s.Mode, ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix)
	}
	for text := range strings.SplitSeq(s.ClusterCIDR, ",") {
		if strings.TrimSpace(text) == "" {
			continue
		}
		prefix, valid := parsePrefix(text)
		if !valid {
			return d, fmt.Errorf("cluster CIDR %q is not a CIDR", text)
		}
		d.cidrs = append(d.cidrs, prefix)
	}
	return d, nil
}

// Problems says what the mode needs and does not have: then nothing that arrives at the node edge is inside.
func (d Detector) Problems() []compile.Problem {
	missing := ""
	switch {
	case d.mode == ClusterCIDR && len(d.cidrs) == 0:
		missing = "--cluster-cidr"
	case d.mode == BridgeInterface && d.device == "":
		missing = "--pod-bridge-interface"
	case d.mode == InterfaceNamePrefix && d.device == "":
		missing = "--pod-interface-name-prefix"
	}
	if missing == "" {
		return nil
	}
	return []compile.Problem{{
		Object: "Configuration", Reason: "DetectLocalModeIncomplete",
		Message: fmt.Sprintf("detectLocalMode %s needs %s: until then all that arrives at the node edge counts as from outside", d.mode, missing),
	}}
}

// BySource tells whether sources are compared with Prefixes.
func (d Detector) BySource() bool { return d.mode == ClusterCIDR || d.mode == NodeCIDR }

// Static tells whether Prefixes do not depend on the node.
func (d Detector) Static() bool { return d.mode != NodeCIDR }

// Prefixes returns the sources that are inside. The node may be nil.
func (d Detector) Prefixes(node *corev1.Node) []netip.Prefix {
	if d.mode == ClusterCIDR {
		return slices.Clone(d.cidrs)
	}
	if d.mode != NodeCIDR || node == nil {
		return nil
	}
	texts := node.Spec.PodCIDRs
	if len(texts) == 0 {
		texts = []string{node.Spec.PodCIDR}
	}
	var prefixes []netip.Prefix
	for _, text := range texts {
		if prefix, valid := parsePrefix(text); valid {
			prefixes = append(prefixes, prefix)
		}
	}
	return prefixes
}

// Device tells whether what comes in by a device is inside. The master is the bridge that it is a port of, by which it has
// come then, as the stack and kube-proxy's rules see it; empty: none.
func (d Detector) Device(name, master string) bool {
	by := cmp.Or(master, name)
	switch {
	case d.device == "":
		return false
	case d.mode == BridgeInterface:
		return by == d.device
	default:
		return strings.HasPrefix(by, d.device)
	}
}

func parsePrefix(text string) (prefix netip.Prefix, valid bool) {
	_, network, err := netutils.ParseCIDRSloppy(strings.TrimSpace(text))
	if err != nil {
		return prefix, false
	}
	address, _ := netip.AddrFromSlice(network.IP)
	ones, _ := network.Mask.Size()
	return netip.PrefixFrom(address, ones), true
}
