package parity

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/weir-lb/weir/controlplane/detectlocal"
)

// client is who opens a connection: from which address, and by which device it comes to the node's stack.
type client struct {
	source netip.Addr
	device string // empty: from the node itself
	bridge string // that the device is a port of; empty: none
}

// clients are those of an origin. Source ranges speak of their addresses, detectLocalMode of their addresses or devices.
func (o origin) clients(family corev1.IPFamily) []client { return allClients[family][o] }

// allClients are made once: they are asked for again and again.
var allClients = func() map[corev1.IPFamily]map[origin][]client {
	all := map[corev1.IPFamily]map[origin][]client{}
	for _, family := range families {
		all[family] = map[origin][]client{}
		for _, o := range origins {
			all[family][o] = o.newClients(family)
		}
	}
	return all
}()

func (o origin) newClients(family corev1.IPFamily) []client {
	at := func(network, number int) netip.Addr { return mustAddr(address(family, network, number)) }
	switch o {
	case fromPod:
		return []client{{at(podNetwork, 1), "veth1", "cni0"}, {at(podNetwork, 2), "cali2", ""}}
	case fromNode:
		// A cloud's agent may put the address of the load balancer on the node.
		return []client{{source: at(nodeNetwork, 1)}, {source: at(loadBalancerNetwork, 10)}}
	default:
		return []client{
			{at(clientNetwork, 1), "eth0", ""},
			{at(clientNetwork, 200), "eth1", "br0"},
			{at(podNetwork, 99), "eth0", ""},
			{at(podNetwork, 40), "cali9", ""}, // pods of another node
		}
	}
}

func (c client) String() string {
	by := ""
	if c.device != "" {
		by = " by " + strings.TrimSuffix(c.device+" of "+c.bridge, " of ")
	}
	return c.source.String() + by
}

// podCIDRs are the prefixes of this node's pods: not of those elsewhere.
var podCIDRs = []string{"10.0.0.0/27", "fd00::/123"}

// localMode is how pods are told from others: kube-proxy's detectLocalMode, with what belongs to it.
type localMode detectlocal.Settings

func randomLocalMode(r *rand.Rand) localMode {
	all := []string{"10.0.0.0/24", "fd00::/112", "10.0.0.0/26", "fd00::/121"}
	cidrs := func() string { return strings.Join(pick(r, all[:2], all[2:], all[:1], all[1:2], nil), ",") }
	return pick(r,
		localMode{}, localMode{ClusterCIDR: cidrs()},
		localMode{Mode: "ClusterCIDR", ClusterCIDR: cidrs()},
		localMode{Mode: "NodeCIDR", ClusterCIDR: cidrs()},
		localMode{Mode: "BridgeInterface", BridgeInterface: pick(r, "cni0", "br0", "eth1", "eth0")},
		localMode{Mode: "InterfaceNamePrefix", NamePrefix: pick(r, "cali", "veth", "eth", "br", "cni")},
	)
}

// detectors are kube-proxy's, made as getLocalDetectors does (cmd/kube-proxy/app/server_linux.go), which is not exported. An
// empty mode is ClusterCIDR there (pkg/proxy/apis/config/v1alpha1/defaults.go).
func (m localMode) detectors() map[corev1.IPFamily]proxyutil.LocalTrafficDetector {
	detectors := map[corev1.IPFamily]proxyutil.LocalTrafficDetector{}
	for _, family := range families {
		detectors[family] = proxyutil.NewNoOpLocalDetector()
		switch m.Mode {
		case "BridgeInterface":
			detectors[family] = proxyutil.NewDetectLocalByBridgeInterface(m.BridgeInterface)
		case "InterfaceNamePrefix":
			detectors[family] = proxyutil.NewDetectLocalByInterfaceNamePrefix(m.NamePrefix)
		}
	}
	var cidrs []string
	switch m.Mode {
	case "", "ClusterCIDR":
		cidrs = strings.Split(m.ClusterCIDR, ",")
	case "NodeCIDR":
		cidrs = podCIDRs
	}
	for family, of := range proxyutil.MapCIDRsByIPFamily(cidrs) {
		detectors[family] = proxyutil.NewDetectLocalByCIDR(of[0].String())
	}
	return detectors
}

// matches tells whether an expression of nftables matches a packet of a client: "ip saddr [!=] PREFIX", or
// "iifname [!=] NAME", which matches nothing where no device is.
func matches(expression []string, c client) bool {
	key, value := expression[0], expression[len(expression)-1]
	unequal := slices.Contains(expression, "!=")
	if key != "iifname" {
		return netip.MustParsePrefix(value).Contains(c.source) != unequal
	}
	device := c.device
	if c.bridge != "" {
		device = c.bridge // the stack sees what a bridge hands on as come by the bridge
	}
	if device == "" {
		return false
	}
	is := device == value
	if prefix, wild := strings.CutSuffix(value, "*"); wild {
		is = strings.HasPrefix(device, prefix)
	}
	return is != unequal
}

// isInside tells what Weir takes for inside: whatever comes by a pod's device or from the node itself, and of what arrives at
// the node edge what its own code says, by the source or by the device.
func isInside(d detectlocal.Detector, prefixes []netip.Prefix, from origin, c client) bool {
	if from != fromOutside {
		return true
	}
	bySource := d.BySource() && slices.ContainsFunc(prefixes, func(prefix netip.Prefix) bool { return prefix.Contains(c.source) })
	return bySource || d.Device(c.device, c.bridge)
}
