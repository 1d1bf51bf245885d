package compile

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// AnnotationDSR, of a Node, says that its agent takes packets for its endpoints out of tunnels, and has them answered to the
// client directly. Its value are the addresses that the node's own tunnels come from, and the prefixes of its pods that a
// bridge connects, with commas between.
const AnnotationDSR = "weir-lb.io/dsr"

// TunnelEnds is what a node says of itself.
type TunnelEnds struct {
	Sources  []netip.Addr   // where its tunnels come from, sorted; none: it takes no part
	Prefixes []netip.Prefix // of its pods that a bridge connects, sorted: answers of one to another meet no program
}

// Tunnels is what the Nodes say of tunnels between them.
type Tunnels struct {
	Nodes   map[string]struct{}       // the others that take part
	Sources map[netip.Addr]struct{}   // where their tunnels come from
	Exempt  map[netip.Prefix]struct{} // clients that may be on a backend's own node: no tunnel is for them
	Own     TunnelEnds                // what others know of this node
}

// ReadTunnels reads the annotations of all nodes.
func ReadTunnels(nodes []*corev1.Node, own string) (Tunnels, []Problem) {
	t := Tunnels{Nodes: map[string]struct{}{}, Sources: map[netip.Addr]struct{}{}, Exempt: map[netip.Prefix]struct{}{}}
	var all []Problem
	for _, node := range nodes {
		problems := &problems{object: "Node " + node.Name}
		ends := readTunnelEnds(node, problems)
		all = append(all, problems.list...)
		switch {
		case node.Name == own:
			t.Own = ends
		case len(ends.Sources) > 0:
			t.Nodes[node.Name] = struct{}{}
			t.add(ends)
		}
	}
	return t, all
}

// add adds what another node says.
func (t *Tunnels) add(ends TunnelEnds) {
	for _, source := range ends.Sources {
		t.Sources[source] = struct{}{}
		t.Exempt[netip.PrefixFrom(source, source.BitLen())] = struct{}{}
	}
	for _, prefix := range ends.Prefixes {
		t.Exempt[prefix] = struct{}{}
	}
}

// readTunnelEnds reads the annotation of one node. What cannot be is left out.
func readTunnelEnds(node *corev1.Node, problems *problems) TunnelEnds {
	var ends TunnelEnds
	for text := range strings.SplitSeq(node.Annotations[AnnotationDSR], ",") {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		if prefix, valid := parsePrefix(text); valid && strings.Contains(text, "/") {
			ends.Prefixes = append(ends.Prefixes, prefix.Masked())
			continue
		}
		address, valid := parseAddress(text)
		switch why := special(address); {
		case !valid:
			problems.add("TunnelSourceRefused", "%s: %q is neither an IP address nor a prefix, and is ignored", AnnotationDSR, text)
		case why != "":
			problems.add("TunnelSourceRefused", "%s: %s is %s: no tunnel comes from there, and it is ignored", AnnotationDSR, text, why)
		default:
			ends.Sources = append(ends.Sources, address)
		}
	}
	return ends.sorted()
}

// sorted returns the same in order, each once.
func (e TunnelEnds) sorted() TunnelEnds {
	slices.SortFunc(e.Sources, netip.Addr.Compare)
	slices.SortFunc(e.Prefixes, netip.Prefix.Compare)
	return TunnelEnds{Sources: slices.Compact(e.Sources), Prefixes: slices.Compact(e.Prefixes)}
}

// Covers tells whether those are all named. Nothing is, where nothing is named at all.
func (e TunnelEnds) Covers(sources []netip.Addr) bool {
	if len(e.Sources) == 0 {
		return false
	}
	return !slices.ContainsFunc(sources, func(source netip.Addr) bool { return !slices.Contains(e.Sources, source) })
}

// CoversPrefixes tells whether those are all named.
func (e TunnelEnds) CoversPrefixes(prefixes []netip.Prefix) bool {
	return !slices.ContainsFunc(prefixes, func(prefix netip.Prefix) bool { return !slices.Contains(e.Prefixes, prefix) })
}

// String returns what the annotation is to say; nothing where no tunnel can come from anywhere.
func (e TunnelEnds) String() string {
	if len(e.Sources) == 0 {
		return ""
	}
	var texts []string
	for _, source := range e.Sources {
		texts = append(texts, source.String())
	}
	for _, prefix := range e.Prefixes {
		texts = append(texts, prefix.String())
	}
	return strings.Join(texts, ",")
}
