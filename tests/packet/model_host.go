package packet

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// ofHost tells whether the flow is between this host itself and a VIP.
func (h *half) ofHost() bool { return h.action&^maps.FlowEnded == maps.FlowHost }

// hostStrays tells whether the packet leaves to an address that only Services can have. In test runs whatever leaves is this
// host's own: it has come by no device.
func (v *visit) hostStrays() bool {
	use := v.vipUse()
	return v.program == NodeEgress && (use == maps.ClusterIPAllocated || use == maps.ClusterIPUnallocated)
}

// vipUse is what a packet's destination is for, if it is not the node's own.
func (v *visit) vipUse() maps.ClusterIPUse {
	to := v.tuple.to.Addr()
	if !to.IsValid() || v.nodeAddrs[to] {
		return 0
	}
	return v.reserved.use(to)
}

// hostUnclaimed is a packet to such an address that no frontend is for (rule C05).
func (v *visit) hostUnclaimed() Result {
	if v.part != whole {
		return v.leaveStray()
	}
	if v.vipUse() == maps.ClusterIPUnallocated {
		return v.drop(&v.counters.DropUnallocated)
	}
	if v.flags&tcpRST != 0 {
		return v.drop(&v.counters.DropHostUntranslated)
	}
	return v.refuse()
}

// hostNew is a packet of no flow that this host sends to a frontend, or, where there is no service, to an address that
// is for frontends.
func (v *visit) hostNew(service *compile.Service) (Result, error) {
	if v.tagged || !isHost(v.tuple.from.Addr()) || !isHost(v.tuple.to.Addr()) {
		return v.drop(&v.counters.DropHostUntranslated), nil
	}
	if v.part == later {
		return v.leaveStray(), nil
	}
	if service == nil {
		return v.hostUnclaimed(), nil
	}
	if v.midstream() {
		if v.flags&tcpRST != 0 {
			return v.drop(&v.counters.DropHostUntranslated), nil
		}
		return v.refuse(), nil
	}
	if !v.isAdmitted(service) {
		return v.drop(&v.counters.DropSourceDenied), nil
	}
	if len(service.Inside) == 0 && v.part != whole {
		return v.leaveStray(), nil
	}
	if len(service.Inside) == 0 {
		return v.noBackend(service), nil
	}
	return v.hostOpen(service)
}

// hostOpen sends a new flow of this host to a backend.
func (v *visit) hostOpen(service *compile.Service) (Result, error) {
	for _, backend := range v.pick(service, true, nil) {
		before := v.counters
		result, plan := v.hostPlan(service, backend)
		if plan == nil && v.agrees(result) {
			return result, nil
		}
		v.counters = before
		if plan != nil && backend.Address == v.seen.to && v.open(plan, true) {
			return v.hostForward(plan, false), nil
		}
	}
	return Result{}, fmt.Errorf("%v may not become %v", v.tuple, v.seen)
}

// hostPlan says how a flow of this host reaches its backend; no plan: the packet ends, as the result says.
func (v *visit) hostPlan(service *compile.Service, backend compile.Backend) (Result, *half) {
	plan := &half{
		to:      tuple{netip.AddrPortFrom(v.tuple.to.Addr(), v.seen.from.Port()), backend.Address},
		service: service.ID, backend: backend.Address, ifindex: v.device.Index, action: maps.FlowHost,
	}
	next := v.routing.next(backend.Address.Addr(), v.length, 0)
	if next.way == wayStack && (backend.Local || v.nodeAddrs[backend.Address.Addr()]) {
		return Result{}, plan // a server on this host: the VIP stands in for the client
	}
	if !v.canSend(next) {
		return v.hostRefuse(next), nil
	}
	source := v.address(next.device)
	if !source.IsValid() {
		return v.drop(&v.counters.DropSnatNoAddress), nil
	}
	plan.to.from = netip.AddrPortFrom(source, v.seen.from.Port())
	return Result{}, plan
}

// hostSend is a packet of a known flow of this host, which leaves.
func (v *visit) hostSend(h *half) Result {
	if !h.forward() { // of a server on this host
		return Result{Redirect, v.arrivedBy(h.ifindex)}
	}
	return v.hostForward(h, true)
}

func (v *visit) hostForward(h *half, known bool) Result {
	if v.hasEnded(h) {
		return v.reject()
	}
	here := h.to.from.Addr() == v.tuple.to.Addr()
	next := v.routing.next(h.to.to.Addr(), v.length, 0)
	if !here && !v.canSend(next) {
		return v.hostRefuse(next)
	}
	if known {
		v.account(h)
	}
	frame := v.frame
	if here {
		frame = v.arrivedBy(v.device.Index)
	}
	return Result{Redirect, v.rewrite(frame, h.to)}
}

// hostRefuse is a packet of this host that cannot go its way.
func (v *visit) hostRefuse(next hop) Result {
	if next.way == wayTooBig {
		return v.tooBig(next.mtu)
	}
	return v.drop(&v.counters.DropNoRoute)
}

// hostAnswered is an answer to this host, at the node edge. It is translated on the device that the question left by.
func (v *visit) hostAnswered(h *half) Result {
	if v.program.XDP() {
		return v.passUp()
	}
	if h.forward() {
		return v.untouched()
	}
	if h.ifindex != v.device.Index {
		return Result{Redirect, v.arrivedBy(h.ifindex)}
	}
	if h.state == maps.FlowUnanswered {
		h.state = maps.FlowAnswered
	}
	v.account(h)
	return Result{Pass, v.rewrite(v.frame, h.to)}
}

// podUnclaimed is a pod's packet to no frontend: it may be the answer of a backend to this host.
func (v *visit) podUnclaimed() Result {
	id := v.id()
	id.edge = 0 // the node edge's
	h := v.halfOf(id)
	if !v.inRange(v.tuple.to.Port()) || h == nil || !h.ofHost() || h.forward() {
		return v.unclaimed()
	}
	if next := v.routing.next(v.tuple.from.Addr(), v.length, v.device.Index); next.device != v.device {
		return v.drop(&v.counters.DropSnatOrphan)
	}
	return Result{Redirect, v.arrivedBy(h.ifindex)}
}

// arrivedBy returns the frame as it comes by another device, or by the one that it was about to leave by.
func (v *visit) arrivedBy(index int) []byte {
	record := v.routing.devices[index].Record
	destination := record.Mac
	if record.Master != 0 {
		destination = record.MasterMac
	}
	frame := slices.Clone(v.frame)
	copy(frame, destination[:])
	copy(frame[6:], "\x02weir\x00")
	return frame
}

// hostError is an ICMP error about a packet of this host, or of a server on it, that a flow is known by.
func (v *visit) hostError(q quote, h *half) Result {
	switch {
	case v.program == NodeEgress && h.forward():
		return v.drop(&v.counters.DropHostUntranslated)
	case h.forward():
		return v.untouched()
	case v.program == NodeIngress && h.ifindex == v.device.Index:
		return Result{Pass, v.rewriteError(q, h)}
	default:
		return Result{Redirect, v.arrivedBy(h.ifindex)}
	}
}

// icmpUnclaimed is an ICMP message about no flow of this edge.
func (v *visit) icmpUnclaimed(q quote, known bool) Result {
	if v.hostStrays() {
		return v.drop(&v.counters.DropHostUntranslated)
	}
	h := v.halfOf(flowID{q.tuple.reverse(), 0, q.protocol})
	if v.program == PodIngress && known && v.inRange(q.tuple.from.Port()) && h != nil && h.ofHost() && !h.forward() {
		return v.hostError(q, h)
	}
	return v.untouched()
}
