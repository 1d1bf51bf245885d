package packet

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// nodeArrive is node_xdp and node_ingress.
func (v *visit) nodeArrive() (Result, error) {
	if !v.forUs() {
		v.countLeft(&v.counters.PassNotForUs)
		return v.untouched(), nil
	}
	h, found := v.lookup()
	switch found {
	case refused:
		return Result{Verdict: Drop}, nil
	case lost:
		return v.refuseLost(), nil
	case hit:
		return v.nodeTranslate(h), nil
	case again:
		if h.ofHost() {
			return v.hostAnswered(h), nil
		}
	}
	return v.nodeNew(h)
}

// nodeTranslate is a packet of a known flow.
func (v *visit) nodeTranslate(h *half) Result {
	if v.hasEnded(h) {
		return v.reject()
	}
	if h.ofHost() {
		return v.hostAnswered(h)
	}
	switch h.action &^ maps.FlowEnded {
	case maps.FlowForeign:
		v.account(h)
		v.countLeft(&v.counters.PassForeign)
		return v.untouched()
	case maps.FlowForward:
		return v.nodeForward(h)
	default:
		if !h.forward() {
			return v.untouched() // turned back at egress
		}
		v.account(h)
		return Result{Pass, v.rewrite(v.frame, h.to)}
	}
}

// nodeForward sends a packet of a known flow out again.
func (v *visit) nodeForward(h *half) Result {
	if v.ttl <= 1 {
		return v.timeExceeded()
	}
	next := v.next(h)
	if next.way == wayTooBig && v.mayBeCut() {
		return v.nodeCuts(h, next.mtu)
	}
	if !v.canSend(next) {
		return v.nodeRefuse(next)
	}
	v.account(h)
	return v.send(next, h.to)
}

// mayBeCut tells whether tc cuts the packet, if it is too long for its way.
func (v *visit) mayBeCut() bool {
	plain := v.transport-v.ip == 20 && v.frame[v.ip+6]&0x40 == 0 && v.length <= mostCut
	return !v.program.XDP() && !v.ipv6 && plain
}

// nodeCuts is a packet of a known flow that goes on in pieces. In test runs every checksum is complete.
func (v *visit) nodeCuts(h *half, mtu int) Result {
	v.account(h)
	v.length = mtu
	if next := v.next(h); next.way != wayOut {
		return v.tooBig(mtu)
	}
	return v.drop(&v.counters.PacketCut)
}

// next is the way of a packet of a flow: forward by the routes, back by the device the client came by.
func (v *visit) next(h *half) hop {
	if h.forward() || h.ifindex == 0 {
		return v.nextOf(h)
	}
	next := v.nextBy(h)
	if next.way == wayStack {
		return v.nextOf(h)
	}
	return next
}

// nextOf is the way of what comes from the packet's source.
func (v *visit) nextOf(h *half) hop {
	if neverForwarded(v.tuple.from.Addr()) {
		return hop{way: wayStack}
	}
	return v.routing.next(h.to.to.Addr(), v.length, 0)
}

// nextBy is the way out of the device that the client of a flow came by: a route's, or its router's. XDP leaves it to tc
// to look for that.
func (v *visit) nextBy(h *half) hop {
	next := v.routing.next(h.to.to.Addr(), v.length, h.ifindex)
	elsewhere := (next.way == wayOut || next.way == wayNoNeighbour) && next.device.Index != h.ifindex
	if next.way != wayStack && !elsewhere {
		return next
	}
	if v.program.XDP() {
		return hop{way: wayByRouter}
	}
	by := v.routing.devices[h.ifindex]
	switch {
	case by == nil || !by.Router.IPv4.IsValid():
		return hop{way: wayStack}
	case v.length > by.MTU:
		return hop{way: wayTooBig, mtu: by.MTU}
	default:
		return hop{way: wayByRouter, device: by}
	}
}

// canSend tells whether this program can send the packet that way itself.
func (v *visit) canSend(next hop) bool {
	if v.tagged {
		return false
	}
	if !v.program.XDP() {
		return next.way == wayOut || next.way == wayNoNeighbour || next.way == wayByRouter
	}
	return next.way == wayOut && (next.device == v.device || next.device.XDP)
}

func (v *visit) send(next hop, to tuple) Result {
	frame := v.hopped(v.rewrite(v.frame, to))
	if next.way != wayOut {
		return Result{Redirect, frame} // the kernel writes the MACs, later
	}
	copy(frame, next.mac)
	copy(frame[6:], next.device.MAC)
	if v.program.XDP() && next.device == v.device {
		return Result{Transmit, frame}
	}
	return Result{Redirect, frame}
}

// nodeRefuse is a packet that cannot go its way, or not from this program.
func (v *visit) nodeRefuse(next hop) Result {
	switch {
	case next.way == wayTooBig:
		return v.tooBig(next.mtu)
	case next.way == wayDrop:
		return v.drop(&v.counters.DropNoRoute)
	case v.program.XDP():
		return v.passUp()
	default:
		return v.untouched()
	}
}

// claimed returns the service that a packet of no flow, or of one whose backend is silent, may open a flow of. Nil: there is
// none, and the result is what becomes of the packet.
func (v *visit) claimed(unclaimed func() Result) (*compile.Service, Result) {
	service, nodePort := v.service()
	if service == nil {
		return nil, unclaimed()
	}
	if !isHost(v.tuple.from.Addr()) {
		return nil, v.untouched()
	}
	if v.part == later {
		return nil, v.leaveFragment()
	}
	if result, foreign := v.foreign(); foreign {
		return nil, result
	}
	if v.midstream() && (nodePort || v.unknown) {
		v.countLeft(&v.counters.PassWithoutFlow)
		return nil, v.untouched()
	}
	if !v.isAdmitted(service) {
		return nil, v.drop(&v.counters.DropSourceDenied)
	}
	return service, Result{}
}

// nodeNew is a packet of no flow, or of one whose backend is silent.
func (v *visit) nodeNew(tried *half) (Result, error) {
	service, result := v.claimed(v.nodeUnclaimed)
	if service == nil {
		return result, nil
	}
	if backends := map[bool][]compile.Backend{true: service.Inside, false: service.Outside}[v.inside()]; len(backends) == 0 {
		return v.noBackend(service), nil
	}
	if v.isLost(service, v.inside()) {
		return v.reject(), nil
	}
	return v.nodeOpen(service, tried)
}

// inside tells whether what arrives at the node edge counts as a pod's (rule C03).
func (v *visit) inside() bool {
	if v.device.Record.Flags&maps.DeviceInside != 0 {
		return true
	}
	return v.settings.Constants.InsideBySource &&
		slices.ContainsFunc(v.insiders, func(prefix netip.Prefix) bool { return prefix.Contains(v.tuple.from.Addr()) })
}

// nodeUnclaimed is a packet to no frontend. No socket of these tests has a port of the SNAT range.
func (v *visit) nodeUnclaimed() Result {
	to := v.tuple.to
	if !v.inRange(to.Port()) || v.opens() || !v.nodeAddrs[to.Addr()] {
		return v.unclaimed()
	}
	return v.drop(&v.counters.DropSnatOrphan)
}

// unclaimed is a packet to no frontend (rule C05).
func (v *visit) unclaimed() Result {
	to := v.tuple.to.Addr()
	if v.midstream() || !isHost(v.tuple.from.Addr()) || !isHost(to) {
		return v.untouched()
	}
	use := v.reserved.use(to)
	switch {
	case use == maps.ClusterIPAllocated && !v.nodeAddrs[to]:
		return v.refuse()
	case use == maps.ClusterIPUnallocated && !v.nodeAddrs[to]:
		return v.drop(&v.counters.DropUnallocated)
	case v.opens():
		v.clearWay()
	}
	return v.untouched()
}

func (v *visit) noBackend(service *compile.Service) Result {
	if service.NoEndpoints {
		return v.refuse()
	}
	return v.drop(&v.counters.DropNoLocalEndpoint)
}

// nodeOpen sends a new flow to a backend, the same for the same tuple until the service changes.
func (v *visit) nodeOpen(service *compile.Service, tried *half) (Result, error) {
	key := tableKey{service.ID, v.tuple}
	inside := v.inside()
	backends := v.pick(service, inside, tried)
	if len(backends) == 0 {
		return v.nodeTranslate(tried), nil
	}
	for _, backend := range backends {
		before := v.counters
		result, plan := v.nodePlan(service, backend)
		if plan == nil && v.agrees(result) {
			return result, nil
		}
		v.counters = before
		if plan == nil || backend.Address != v.seen.to || !v.openOr(tried, plan, plan.action == maps.FlowForward) {
			continue
		}
		if tried != nil {
			return v.nodeBegun(plan), nil
		}
		if once, ok := v.picked[key]; ok && !inside && service.OutsideAlgorithm == maps.AlgorithmMaglev && !v.sticky[service.ID] && once != backend.Address {
			return Result{}, fmt.Errorf("%v goes to %v, once it went to %v", v.tuple, backend.Address, once)
		}
		v.picked[key] = backend.Address
		return v.nodeBegun(plan), nil
	}
	return Result{}, fmt.Errorf("%v may not become %v", v.tuple, v.seen)
}

// agrees tells whether this is what the program made of the packet.
func (v *visit) agrees(result Result) bool {
	if result.Verdict != v.result.Verdict {
		return false
	}
	return result.Verdict == Drop || bytes.Equal(result.Packet, v.result.Packet)
}

// nodePlan says how a flow reaches its backend; no plan: the packet ends, as the result says.
func (v *visit) nodePlan(service *compile.Service, backend compile.Backend) (Result, *half) {
	ifindex := v.logical()
	if v.tagged {
		ifindex = 0 // the VLAN's own device, whose index we do not know
	}
	plan := &half{
		to:      tuple{netip.AddrPortFrom(v.tuple.from.Addr(), v.seen.from.Port()), backend.Address},
		service: service.ID, backend: backend.Address, ifindex: ifindex, action: maps.FlowStack,
	}
	if backend.Local {
		return Result{}, plan
	}
	next := v.routing.next(backend.Address.Addr(), v.length, 0)
	toPods := next.device != nil && next.device.Pod != 0
	if next.way == wayStack || toPods {
		return Result{}, plan
	}
	if v.midstream() {
		return v.reject(), nil
	}
	if v.ttl <= 1 {
		return v.timeExceeded(), nil
	}
	if !v.canSend(next) {
		return v.nodeRefuse(next), nil
	}
	source := v.address(next.device)
	if !source.IsValid() {
		return v.drop(&v.counters.DropSnatNoAddress), nil
	}
	plan.to.from = netip.AddrPortFrom(source, v.seen.from.Port())
	plan.action = maps.FlowForward
	return Result{}, plan
}

// nodeBegun is the first packet of a flow. Its flow stays also where the packet does not get far.
func (v *visit) nodeBegun(h *half) Result {
	if h.action == maps.FlowStack {
		return Result{Pass, v.rewrite(v.frame, h.to)}
	}
	return v.send(v.next(h), h.to)
}

// nodeDepart is node_egress.
func (v *visit) nodeDepart() (Result, error) {
	h, found := v.lookup()
	switch found {
	case refused:
		return Result{Verdict: Drop}, nil
	case lost:
		return v.refuseLost(), nil
	case hit, again:
		return v.nodeDepartKnown(h), nil
	}
	if service := v.services[frontendID{v.tuple.to, v.protocol}]; service != nil || v.hostStrays() {
		return v.hostNew(service)
	}
	v.recordForeign()
	return v.untouched(), nil
}

func (v *visit) nodeDepartKnown(h *half) Result {
	if h.ofHost() {
		return v.hostSend(h)
	}
	if h.forward() || h.action != maps.FlowStack {
		return v.untouched()
	}
	next := v.departs(h)
	if next.way == wayTooBig {
		return v.tooBig(next.mtu)
	}
	v.account(h)
	frame := v.rewrite(v.frame, h.to)
	if v.canSend(next) {
		return Result{Redirect, frame}
	}
	return Result{Pass, frame}
}

// departs is the way of what leaves, by the device that the client of its flow came by, where that is another than this one.
func (v *visit) departs(h *half) hop {
	if h.ifindex == 0 || h.ifindex == v.logical() {
		return hop{way: wayStack}
	}
	return v.nextBy(h)
}

// recordForeign notes a connection of the node itself whose answers could be taken for packets of ours.
func (v *visit) recordForeign() {
	from := v.tuple.from
	ours := v.inRange(from.Port()) || v.services[v.nodePortOf(from)] != nil
	if !ours || !v.nodeAddrs[from.Addr()] {
		return
	}
	inbound := v.id()
	inbound.tuple = v.tuple.reverse()
	if known := v.flows[inbound]; known != nil {
		if known.action == maps.FlowForeign {
			v.track(known)
		}
		return
	}
	if v.flags&tcpRST != 0 || v.embryos[inbound] != nil || !v.hasRoom(1) {
		return
	}
	v.flows[inbound] = &half{action: maps.FlowForeign, half: maps.FlowHalfReverse}
	v.born = append(v.born, inbound)
	v.counters.FlowForeign++
}

// podSend is pod_ingress.
func (v *visit) podSend() (Result, error) {
	if !v.forUs() {
		v.countLeft(&v.counters.PassNotForUs)
		return v.untouched(), nil
	}
	h, found := v.lookup()
	switch found {
	case refused:
		return Result{Verdict: Drop}, nil
	case lost:
		return v.refuseLost(), nil
	case hit:
		return v.podTranslate(h, true), nil
	default:
		return v.podNew(h)
	}
}

func (v *visit) podTranslate(h *half, known bool) Result {
	if v.hasEnded(h) {
		return v.reject()
	}
	back := h.action&^maps.FlowEnded == maps.FlowReturn
	if !back && !h.forward() {
		return v.untouched()
	}
	if back && v.ttl <= 1 {
		return v.timeExceeded()
	}
	if known {
		v.account(h)
	}
	frame := v.rewrite(v.frame, h.to)
	if !back {
		return Result{Pass, frame}
	}
	return Result{Redirect, returned(v.hopped(frame))}
}

func (v *visit) podNew(tried *half) (Result, error) {
	service, result := v.claimed(v.podUnclaimed)
	if service == nil {
		return result, nil
	}
	if len(service.Inside) == 0 {
		return v.noBackend(service), nil
	}
	if v.isLost(service, true) {
		return v.reject(), nil
	}
	return v.podOpen(service, tried)
}

// podOpen sends a new flow of a pod to a backend.
func (v *visit) podOpen(service *compile.Service, tried *half) (Result, error) {
	backends := v.pick(service, true, tried)
	if len(backends) == 0 {
		return v.podTranslate(tried, true), nil
	}
	for _, backend := range backends {
		before := v.counters
		result, plan := v.podPlan(service, backend)
		if plan == nil && v.agrees(result) {
			return result, nil
		}
		v.counters = before
		if plan != nil && backend.Address == v.seen.to && v.openOr(tried, plan, plan.action == maps.FlowReturn) {
			return v.podTranslate(plan, false), nil
		}
	}
	return Result{}, fmt.Errorf("%v may not become %v", v.tuple, v.seen)
}

// podPlan is nodePlan for a packet of a pod: only one to itself needs the node's address.
func (v *visit) podPlan(service *compile.Service, backend compile.Backend) (Result, *half) {
	plan := &half{
		to:      tuple{netip.AddrPortFrom(v.tuple.from.Addr(), v.seen.from.Port()), backend.Address},
		service: service.ID, backend: backend.Address, ifindex: v.device.Index, action: maps.FlowStack,
	}
	if backend.Address.Addr() != v.tuple.from.Addr() {
		return Result{}, plan
	}
	if v.midstream() {
		return v.reject(), nil
	}
	source := v.address(v.device)
	if !source.IsValid() {
		return v.drop(&v.counters.DropNoHairpinAddress), nil
	}
	if v.ttl <= 1 {
		return v.timeExceeded(), nil
	}
	plan.to.from = netip.AddrPortFrom(source, v.seen.from.Port())
	plan.action = maps.FlowReturn
	return Result{}, plan
}

// podReceive is pod_egress.
func (v *visit) podReceive() Result {
	h, found := v.lookup()
	if found == lost {
		return v.refuseLost()
	}
	if found != hit || h.forward() || h.action != maps.FlowStack {
		return v.untouched()
	}
	v.account(h)
	return Result{Pass, v.rewrite(v.frame, h.to)}
}
