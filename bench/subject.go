package bench

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Case names what is measured. Its fields are part of the JSON form.
type Case struct {
	Hook     string `json:"hook"`              // "xdp" or "tc"
	Edge     string `json:"edge"`              // "node" or "pod"; "bench" for what is only compared with
	Packet   string `json:"packet"`            // "hit", "new", "no-service"; "floor-hit", "floor-parse", "harness"
	Backend  string `json:"backend,omitempty"` // "local", "remote": on this node or behind another
	Family   string `json:"family"`            // "IPv4" or "IPv6"
	Protocol string `json:"protocol"`          // "TCP" or "UDP"
	Flows    uint32 `json:"flows"`             // that are known, and that the packets of a hit are of
}

// String returns the parts of the name with slashes between: "xdp/node/hit/local/IPv4/TCP/65536".
func (c Case) String() string {
	parts := []string{c.Hook, c.Edge, c.Packet, c.Backend, c.Family, c.Protocol, fmt.Sprint(c.Flows)}
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), "/")
}

// The packets of a case.
const (
	packetHit        = "hit"         // of an established flow, client to backend
	packetNew        = "new"         // that opens a flow
	packetNoService  = "no-service"  // to an address that nothing is served on
	packetFloorHit   = "floor-hit"   // of floor.bpf.c
	packetFloorParse = "floor-parse" // of floor.bpf.c
	packetHarness    = "harness"     // behind which is the empty program
)

const (
	edgeNode  = "node"
	edgePod   = "pod"
	edgeBench = "bench"
)

// The groups of subjects: each has a service whose flows are known, and one whose are new.
const (
	groupAll    = "" // with each of the others
	groupLocal  = "local"
	groupRemote = "remote"
	groupPod    = "pod"
)

// kinds are the kinds of packet that everything is measured with.
func kinds() []kind {
	var all []kind
	for _, family := range families() {
		all = append(all, kind{family, compile.TCP}, kind{family, compile.UDP})
	}
	return all
}

// subject is a case with all it takes to run it.
type subject struct {
	Case
	group   string
	wanted  bool
	packets packets
	service *service // to which the packets go; nil: none, or the floor's
	program *ebpf.Program
	ifindex int // of the device the packets arrive by
	expect  expectation
	harness *harness
	traffic uint32 // id of the service
}

// expectation is what becomes of each packet.
type expectation struct {
	verdict     uint32
	backendPort uint16 // the destination becomes a backend with this port; 0: it stays
	forwards    bool   // the source becomes the node, with a port of SNAT, and the TTL falls
	addressed   bool   // the Ethernet header is for the gateway
}

// subjects returns everything that is measured with a kind of packet.
func (w *world) subjects(k kind, flows uint32) []*subject {
	var all []*subject
	for _, at := range []hook{xdp, tc} {
		all = append(all, w.references(k, at)...)
		for _, s := range services() {
			if s.edge == edgeNode || at == tc {
				all = append(all, w.toService(k, at, s))
			}
		}
		all = append(all, w.toNobody(k, at, edgeNode))
	}
	all = append(all, w.toNobody(k, tc, edgePod))
	for _, s := range all {
		s.Family, s.Protocol, s.Flows = k.Family.String(), k.Protocol.String(), flows
	}
	return all
}

// references are what the others are compared with.
func (w *world) references(k kind, at hook) []*subject {
	floor := w.outside(k, floorFrontend(k.Family))
	reference := func(packet string, program *ebpf.Program, expect expectation) *subject {
		return &subject{
			Case:    Case{Hook: string(at), Edge: edgeBench, Packet: packet},
			packets: floor, program: program, ifindex: w.network.uplink.Attrs().Index, expect: expect,
		}
	}
	parse, hit := w.floors.Programs["floor_parse_"+string(at)], w.floors.Programs["floor_hit_"+string(at)]
	return []*subject{
		reference(packetHarness, w.empty[at], expectation{verdict: at.pass()}),
		reference(packetFloorParse, parse, expectation{verdict: floorParsed}),
		reference(packetFloorHit, hit, expectation{verdict: floorHit, backendPort: floorBackendPort}),
	}
}

// toService are packets to a frontend, of known flows or of new ones.
func (w *world) toService(k kind, at hook, to service) *subject {
	s := w.arriving(k, at, to.edge, to.frontend(k.Family))
	s.service = &to
	s.expect = expectation{verdict: at.pass(), backendPort: to.backendPort()}
	s.Packet = packetHit
	if to.fresh {
		s.Packet, s.packets.syn = packetNew, true
	}
	switch {
	case to.edge == edgePod:
		s.group = groupPod // the stack does the rest, wherever the backend is
	case to.local:
		s.group, s.Backend = groupLocal, "local"
	default:
		s.group, s.Backend = groupRemote, "remote"
		s.expect.verdict, s.expect.forwards, s.expect.addressed = at.forward(), true, true
	}
	return s
}

// toNobody are packets that nothing is served for.
func (w *world) toNobody(k kind, at hook, edge string) *subject {
	const port = 80
	s := w.arriving(k, at, edge, netip.AddrPortFrom(addressesOf(k.Family).nobody, port))
	s.Packet, s.expect, s.group = packetNoService, expectation{verdict: at.pass()}, groupLocal
	if edge == edgePod {
		s.group = groupPod
	}
	return s
}

// arriving are packets to an address, at an edge.
func (w *world) arriving(k kind, at hook, edge string, to netip.AddrPort) *subject {
	s := &subject{Case: Case{Hook: string(at), Edge: edge}}
	switch {
	case edge == edgePod:
		s.program, s.ifindex, s.packets = w.programs.PodIngress, w.network.pod.Attrs().Index, w.inside(k, to)
		return s
	case at == xdp:
		s.program = w.programs.NodeXDP
	default:
		s.program = w.programs.NodeIngress
	}
	s.ifindex, s.packets = w.network.uplink.Attrs().Index, w.outside(k, to)
	return s
}

// outside returns packets that come in by the uplink.
func (w *world) outside(k kind, to netip.AddrPort) packets {
	return packets{
		kind: k, destination: to, clients: addressesOf(k.Family).clients,
		to: w.network.uplink.Attrs().HardwareAddr, from: w.network.gateway,
	}
}

// inside returns packets that a pod sends.
func (w *world) inside(k kind, to netip.AddrPort) packets {
	return packets{
		kind: k, destination: to, clients: addressesOf(k.Family).pods,
		to: w.network.pod.Attrs().HardwareAddr, from: w.network.podMAC,
	}
}

// harnessFlows returns of how many flows the harness makes the packets.
func (s *subject) harnessFlows() uint32 {
	if s.Packet == packetNew {
		return newFlows
	}
	return s.Flows
}

// prepare puts a harness before the program.
func (s *subject) prepare(w *world) error {
	if s.service != nil {
		id, err := w.id(*s.service, s.packets.kind)
		if err != nil {
			return err
		}
		s.traffic = id
	}
	var err error
	s.harness, err = newHarness(hook(s.Hook), s.program, s.packets, s.harnessFlows(), s.ifindex)
	if err != nil || s.Hook == string(xdp) {
		return err
	}
	return s.harness.startAt(1 << (portBits + 15)) // far from the new flows of XDP, which are new here too
}

// close frees what prepare made.
func (s *subject) close() {
	if s.harness != nil {
		s.harness.close()
	}
}
