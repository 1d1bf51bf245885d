package packet

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Model says what the programs shall make of a packet. It knows what was decided about them, not how they
// are written. Where they pick by chance, a backend or a port, it checks that what they picked was allowed,
// and goes on from there.
type Model struct {
	routing   *routing
	nodeAddrs map[netip.Addr]bool
	services  map[frontendID]*compile.Service
	reserved  Reserved
	insiders  []netip.Prefix // whose packets count as inside at the node edge
	settings  Settings

	flows     map[flowID]*half
	embryos   map[flowID]*half
	counters  maps.PacketCounters
	traffic   map[compile.ID]*maps.Traffic
	picked    map[tableKey]netip.AddrPort
	affinity  map[clientKey]netip.AddrPort
	sticky    map[compile.ID]bool   // services with affinity
	vips      map[netip.Addr]uint32 // who answers pings, by flags of map vips
	echoes    map[Program]int       // pings answered
	messages  map[Program]int       // ICMP errors sent; nothing of a test takes more than a second, see DefaultSettings
	aged      bool                  // unanswered and ended flows are old enough to lose their port
	born      []flowID              // every half there has been, in their order
	pressed   bool                  // no port is free: young embryos lose theirs
	datagrams map[fragmentID]datagram
	silent    map[flowID]bool // embryos whose client has waited long enough to send its SYN again
	unknown   bool            // connections from before are not recorded yet
}

// frontendID names a frontend; a NodePort's address is the unspecified one.
type frontendID struct {
	address  netip.AddrPort
	protocol uint8
}

// tableKey is what the choice of a Maglev table depends on.
type tableKey struct {
	service compile.ID
	tuple   tuple
}

// clientKey is what a client is remembered by.
type clientKey struct {
	group  uint64
	client netip.Addr
}

// NewModel returns a model of the world, in which no packet has been seen yet.
func NewModel(w *World, settings Settings) (*Model, error) {
	routing, err := readRouting(w.Node)
	if err != nil {
		return nil, err
	}
	m := &Model{routing: routing, settings: settings, nodeAddrs: make(map[netip.Addr]bool)}
	for _, device := range w.devices {
		if device.Addresses.IPv4.IsValid() {
			m.nodeAddrs[device.Addresses.IPv4], m.nodeAddrs[device.Addresses.IPv6] = true, true
		}
	}
	m.Reset()
	return m, nil
}

// Reset makes the model one of empty maps.
func (m *Model) Reset() {
	m.Forget()
	m.reserved, m.insiders = nil, nil
}

// Forget forgets every flow and counter; what was served, reserved and inside is so on.
func (m *Model) Forget() {
	m.flows, m.embryos = make(map[flowID]*half), make(map[flowID]*half)
	m.counters = maps.PacketCounters{}
	m.traffic = make(map[compile.ID]*maps.Traffic)
	m.picked = make(map[tableKey]netip.AddrPort)
	m.affinity = make(map[clientKey]netip.AddrPort)
	m.messages, m.echoes = make(map[Program]int), make(map[Program]int)
	m.silent = make(map[flowID]bool)
	m.datagrams = make(map[fragmentID]datagram)
	m.born = nil
	m.unknown = false
}

// Serve makes these services, and no others, the ones of the world.
func (m *Model) Serve(services ...compile.Service) {
	m.services = make(map[frontendID]*compile.Service)
	m.picked = make(map[tableKey]netip.AddrPort)
	m.sticky = make(map[compile.ID]bool)
	m.vips = vipsOf(services)
	for i := range services {
		m.sticky[services[i].ID] = services[i].AffinityTimeout > 0
		for _, frontend := range services[i].Frontends {
			m.services[frontendID{frontend.Address, uint8(services[i].ID.Protocol)}] = &services[i]
		}
	}
}

// visit is a packet on its way through a program.
type visit struct {
	*Model
	parsed
	program Program
	device  *Device
	frame   []byte
	length  int // what is compared with MTUs
	seen    tuple
	result  Result // what the program made of it, from which picks are read
}

// Check compares what a program made of a packet with what it should have.
func (m *Model) Check(program Program, device *Device, frame []byte, result Result) error {
	want, err := m.visit(program, device, frame, result)
	if err != nil {
		return describe(program, device, frame, result, err)
	}
	if want.Verdict != result.Verdict {
		return describe(program, device, frame, result, fmt.Errorf("the verdict shall be %s", want.Verdict))
	}
	if want.Verdict != Drop && !bytes.Equal(want.Packet, result.Packet) {
		return describe(program, device, frame, result, fmt.Errorf("the packet shall be\n%s", hex.Dump(want.Packet)))
	}
	return nil
}

func describe(program Program, device *Device, frame []byte, result Result, err error) error {
	return fmt.Errorf("%s on %s made of\n%s%s:\n%s%w", program, device.Name, hex.Dump(frame), result.Verdict,
		hex.Dump(result.Packet), err)
}

// visit follows a packet. An error says that the program picked what it may not.
func (m *Model) visit(program Program, device *Device, frame []byte, result Result) (Result, error) {
	v := &visit{Model: m, program: program, device: device, frame: frame, result: result}
	var why reason
	v.parsed, why = parse(frame)
	v.length = v.parsed.length
	v.look()
	switch why {
	case understood:
		return v.arrive()
	case icmp:
		return v.icmpMessage(), nil
	}
	if why == fragment {
		return v.fragment()
	}
	if v.hostStrays() {
		return v.drop(&v.counters.DropHostUntranslated), nil
	}
	v.leave(why)
	return v.untouched(), nil
}

// look reads the tuple that the program has given the packet.
func (v *visit) look() {
	seen, why := parse(v.result.Packet)
	if why == fragment {
		if _, ok := seen.readFragment(v.result.Packet); ok && seen.part == first && seen.readFirst(v.result.Packet) {
			why = understood
		}
	}
	if why == understood {
		v.seen = seen.tuple
	}
}

// arrive is a packet whose ports are known.
func (v *visit) arrive() (Result, error) {
	switch v.program {
	case NodeXDP, NodeIngress:
		return v.nodeArrive()
	case NodeEgress:
		return v.nodeDepart()
	case PodIngress:
		return v.podSend()
	default:
		return v.podReceive(), nil
	}
}

func (v *visit) leave(why reason) {
	switch why {
	case malformed:
		v.countLeft(&v.counters.PassMalformed)
	case extension:
		v.countLeft(&v.counters.PassExtension)
	}
}

// countLeft counts a packet that is left alone. XDP leaves that to tc.
func (v *visit) countLeft(counter *uint64) {
	if !v.program.XDP() {
		*counter++
	}
}

func (v *visit) untouched() Result { return Result{Pass, v.frame} }

// drop counts a packet that ends here.
func (v *visit) drop(counter *uint64) Result {
	*counter++
	return Result{Verdict: Drop}
}

// forUs tells whether the frame's MAC is the device's, or that of the bridge it is a port of.
func (v *visit) forUs() bool {
	to := v.frame[:6]
	if bytes.Equal(to, v.device.MAC) {
		return true
	}
	return v.device.Record.Master != 0 && bytes.Equal(to, v.device.Record.MasterMac[:])
}

// logical is the device that flows remember: a port stands for its bridge.
func (v *visit) logical() int {
	if v.device.Record.Master != 0 {
		return int(v.device.Record.Master)
	}
	return v.device.Index
}

// address returns the node's address on a device; invalid: it has none.
func (v *visit) address(device *Device) netip.Addr {
	if v.ipv6 {
		return device.Addresses.IPv6
	}
	return device.Addresses.IPv4
}

// isHost tells whether a host can have the address.
func isHost(a netip.Addr) bool {
	if a.Is4() {
		first := a.As4()[0]
		return first != 0 && first != 127 && first < 224
	}
	low := a.As16()
	return !a.IsMulticast() && !a.IsLinkLocalUnicast() && !bytes.Equal(low[:12], make([]byte, 12))
}

// service returns the service that the packet is for, and whether by a NodePort.
func (v *visit) service() (service *compile.Service, nodePort bool) { return v.serviceAt(v.tuple.to) }

// serviceAt returns the service that an address is a frontend of, and whether as a NodePort.
func (v *visit) serviceAt(to netip.AddrPort) (service *compile.Service, nodePort bool) {
	if service := v.services[frontendID{to, v.protocol}]; service != nil && isHost(to.Addr()) {
		return service, false
	}
	if !v.nodeAddrs[to.Addr()] {
		return nil, false
	}
	return v.services[v.nodePortOf(to)], true
}

func (v *visit) nodePortOf(address netip.AddrPort) frontendID {
	return frontendID{netip.AddrPortFrom(v.anyAddress(), address.Port()), v.protocol}
}

func (v *visit) anyAddress() netip.Addr {
	if v.ipv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// answer sends an ICMP error about the packet.
func (v *visit) answer(e icmpError) Result {
	if v.part == later {
		return v.drop(&v.counters.DropFragment)
	}
	if v.messages[v.program]++; v.messages[v.program] > icmpRate {
		return v.drop(&v.counters.IcmpLimited)
	}
	message, ok := v.icmp(v.frame, e)
	if !ok || v.tagged {
		return v.drop(&v.counters.DropRewriteFailed)
	}
	return Result{Redirect, message}
}

// icmpRate is how many ICMP errors a CPU sends in a second at most.
const icmpRate = 1000

// passUp leaves a packet at XDP to tc.
func (v *visit) passUp() Result {
	v.counters.XdpPassedUp++
	return v.untouched()
}

func (v *visit) timeExceeded() Result {
	if v.program.XDP() {
		return v.passUp()
	}
	v.counters.IcmpTimeExceeded++
	return v.answer(icmpError{type4: 11, type6: 3, from: v.router()})
}

// router is whom errors come from that the node has to tell: a device without an address speaks as the one asked, and so
// does the node to itself.
func (v *visit) router() netip.Addr {
	if address := v.address(v.device); address.IsValid() && v.program != NodeEgress {
		return address
	}
	return v.tuple.to.Addr()
}

func (v *visit) tooBig(mtu int) Result {
	if v.program.XDP() {
		return v.passUp()
	}
	v.counters.IcmpTooBig++
	return v.answer(icmpError{type4: 3, code4: 4, type6: 2, mtu: mtu, from: v.router()})
}

// refuse answers a packet to a service without endpoints (rule P06).
func (v *visit) refuse() Result {
	if v.program.XDP() {
		return v.passUp()
	}
	if !v.connection() {
		v.counters.RejectUnreachable++
		return v.answer(icmpError{type4: 3, code4: 3, type6: 1, code6: 4, from: v.tuple.to.Addr()})
	}
	return v.reject()
}

// reject answers a packet of a connection with a reset or an ABORT; neither is answered.
func (v *visit) reject() Result {
	if v.program.XDP() {
		return v.passUp()
	}
	if v.flags&tcpRST != 0 {
		return Result{Verdict: Drop}
	}
	if v.part != whole {
		return v.drop(&v.counters.DropFragment)
	}
	if v.sctp() {
		v.counters.RejectSctpAbort++
		return Result{Redirect, v.abort(v.frame)}
	}
	v.counters.RejectTcpReset++
	return Result{Redirect, v.reset(v.frame)}
}

// pick returns the backends that the program may have picked: the one that shows in the packet, or, where
// none does, all. A client that is remembered has no choice, as long as its backend is there (rules A01 to A04). Where
// a backend has been tried in vain, it is another one, whatever is remembered; none: there is no other.
func (v *visit) pick(service *compile.Service, inside bool, tried *half) []compile.Backend {
	all := service.Outside
	if inside {
		all = service.Inside
	}
	if tried != nil {
		all = slices.DeleteFunc(slices.Clone(all), func(b compile.Backend) bool { return b.Address == tried.backend })
	} else if known, ok := v.affinity[v.clientOf(service.ID)]; ok && v.sticky[service.ID] {
		if only := backendsAt(all, known); len(only) > 0 {
			return only
		}
	}
	if shown := backendsAt(all, v.seen.to); len(shown) > 0 {
		return shown
	}
	return all
}

// backendsAt returns those of the backends, one or none, that have that address.
func backendsAt(all []compile.Backend, address netip.AddrPort) []compile.Backend {
	for i, backend := range all {
		if backend.Address == address {
			return all[i : i+1]
		}
	}
	return nil
}

func (v *visit) clientOf(service compile.ID) clientKey {
	return clientKey{service.Group(), v.tuple.from.Addr()}
}

// remember notes which backend a client has got of a service, if that has affinity.
func (v *visit) remember(service compile.ID, backend netip.AddrPort, address netip.Addr) {
	if !v.sticky[service] {
		return
	}
	client := clientKey{service.Group(), address}
	switch known, ok := v.affinity[client]; {
	case !ok:
		v.counters.AffinityNew++
	case known == backend:
		v.counters.AffinityKept++
	default:
		v.counters.AffinityMoved++
	}
	v.affinity[client] = backend
}
