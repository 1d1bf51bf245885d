package packet

import (
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// flowID is what a packet's flow is found by.
type flowID struct {
	tuple    tuple
	edge     uint16
	protocol uint8
}

// other returns the ID of the other half of a flow whose packets get the tuple `to`.
func (id flowID) other(to tuple) flowID {
	id.tuple = to.reverse()
	return id
}

// half is one direction of a flow.
type half struct {
	to      tuple
	action  maps.FlowAction
	half    maps.FlowHalf
	state   maps.FlowState
	service compile.ID
	backend netip.AddrPort
	ifindex int
	retry   bool
}

func (h *half) forward() bool { return h.half == maps.FlowHalfForward }

func (v *visit) id() flowID {
	return flowID{v.tuple, v.device.Record.EdgeId, v.protocol}
}

// found is what the flow tables say about a packet.
type found int

const (
	miss found = iota
	hit
	again   // a SYN of a flow whose backend is silent: another may be tried
	lost    // an answer of a backend that does not have the flow
	refused // its flow cannot be established: no room
)

// lookup finds the half a packet belongs to, and moves a flow on that it answers.
func (v *visit) lookup() (*half, found) {
	id := v.id()
	h := v.flows[id]
	if h == nil {
		return v.lookupEmbryo(id)
	}
	if v.opens() && h.forward() && h.action != maps.FlowForeign && v.closing(id, h) {
		other := id.other(h.to)
		delete(v.flows, id)
		delete(v.flows, other)
		delete(v.embryos, id)
		delete(v.embryos, other)
		return nil, miss
	}
	return h, hit
}

// closing tells whether either side of the connection has ended it.
func (v *visit) closing(id flowID, h *half) bool {
	peer := v.flows[id.other(h.to)]
	return h.state >= maps.FlowClosing || peer == nil || peer.state >= maps.FlowClosing
}

func (v *visit) lookupEmbryo(id flowID) (*half, found) {
	h := v.embryos[id]
	if h == nil {
		return nil, miss
	}
	if !h.forward() {
		return v.lookupAnswer(id, h)
	}
	if v.opens() && h.state >= maps.FlowClosing {
		return nil, miss
	}
	other := id.other(h.to)
	peer := v.embryos[other]
	if peer == nil || peer.to != id.tuple.reverse() { // evicted, and another flow may have got its place
		return v.rebuild(id, h)
	}
	if v.opens() {
		if peer.state >= maps.FlowClosing {
			return nil, miss
		}
		if v.silent[id] && peer.state == maps.FlowUnanswered {
			return h, again
		}
		return h, hit
	}
	if peer.state != maps.FlowAnswered || h.state >= maps.FlowClosing || v.flags&tcpRST != 0 {
		return h, hit
	}
	return v.establish(id, h, other, peer)
}

// rebuild puts back the reverse half of an embryo, which eviction took.
func (v *visit) rebuild(id flowID, h *half) (*half, found) {
	reverse := *h
	reverse.to, reverse.half, reverse.state = id.tuple.reverse(), maps.FlowHalfReverse, maps.FlowUnanswered
	if !v.free(id.other(h.to), id) {
		return nil, miss
	}
	v.claim(id.other(h.to), id, &reverse)
	v.counters.FlowReverseRebuilt++
	return h, hit
}

// hasRoom tells whether so many halves fit into the flow table of the packet's family.
func (v *visit) hasRoom(halves int) bool {
	ipv4, room := v.tuple.from.Addr().Is4(), v.settings.Sizes.FlowsIPv6
	if ipv4 {
		room = v.settings.Sizes.FlowsIPv4
	}
	if len(v.flows)+halves <= int(room) {
		return true
	}
	for id := range v.flows {
		if id.tuple.from.Addr().Is4() == ipv4 {
			halves++
		}
	}
	return halves <= int(room)
}

// establish moves a pair of embryos to the flow table.
func (v *visit) establish(id flowID, h *half, other flowID, peer *half) (*half, found) {
	if !v.hasRoom(2) {
		v.counters.DropFlowTableFull++
		return nil, refused
	}
	h.state, peer.state = maps.FlowEstablished, maps.FlowEstablished
	v.flows[id], v.flows[other] = h, peer
	delete(v.embryos, id)
	delete(v.embryos, other)
	v.counters.FlowEstablished++
	return h, hit
}

// free tells whether answers of a flow with that forward ID may come as `reverse`.
func (v *visit) free(reverse, forward flowID) bool {
	holder := v.embryos[reverse]
	if holder != nil && reverse.other(holder.to) != forward && !v.yields(reverse, holder) {
		return false
	}
	established := v.flows[reverse]
	return established == nil || v.aged && v.over(reverse, established)
}

// yields tells whether an embryo may lose its tuple to another flow.
func (v *visit) yields(reverse flowID, embryo *half) bool {
	unanswered := embryo.state == maps.FlowUnanswered
	return v.aged && unanswered || v.pressed && (unanswered || reverse.protocol != protocolUDP)
}

// over tells whether an established flow has ended on both sides.
func (v *visit) over(id flowID, h *half) bool {
	peer := v.flows[id.other(h.to)]
	if h.action == maps.FlowForeign {
		return false
	}
	closed := h.state == maps.FlowClosed || peer != nil && peer.state == maps.FlowClosed
	return closed || h.state == maps.FlowClosing && (peer == nil || peer.state == maps.FlowClosing)
}

// clearWay forgets the flow whose answers look like those to this packet, a SYN to no frontend, where it is over.
func (v *visit) clearWay() {
	reverse := v.id().other(v.tuple)
	if holder := v.flows[reverse]; holder != nil && v.aged && v.over(reverse, holder) {
		delete(v.flows, reverse.other(holder.to))
		delete(v.flows, reverse)
	}
	embryo := v.embryos[reverse]
	if embryo == nil || embryo.forward() {
		return
	}
	other := reverse.other(embryo.to)
	peer := v.embryos[other]
	closing := embryo.state >= maps.FlowClosing || peer == nil || peer.state >= maps.FlowClosing
	if closing || v.aged && embryo.state == maps.FlowUnanswered {
		delete(v.embryos, other)
		delete(v.embryos, reverse)
	}
}

// claim takes the answers `reverse` for a flow, from another where need be.
func (v *visit) claim(reverse, forward flowID, answers *half) {
	if holder := v.embryos[reverse]; holder != nil && reverse.other(holder.to) != forward {
		if loser := v.embryos[reverse.other(holder.to)]; loser != nil && loser.to == reverse.tuple.reverse() {
			delete(v.embryos, reverse.other(holder.to))
		}
	}
	if holder := v.flows[reverse]; holder != nil {
		delete(v.flows, reverse.other(holder.to))
		delete(v.flows, reverse)
	}
	v.embryos[reverse] = answers
}

// account notes a packet of a known flow that goes through. What goes through of a foreign flow is its answer.
func (v *visit) account(h *half) {
	v.track(h)
	delete(v.silent, v.id())
	if h.action != maps.FlowForeign {
		v.carry(h)
	} else if h.state == maps.FlowUnanswered {
		h.state = maps.FlowEstablished
	}
}

// track follows the end of a TCP connection.
func (v *visit) track(h *half) {
	if v.flags&tcpRST != 0 {
		h.state = maps.FlowClosed
	} else if v.flags&tcpFIN != 0 && h.state < maps.FlowClosing {
		h.state = maps.FlowClosing
	}
}

// hasEnded tells whether the client is to be told that its backend has left: its own reset goes on.
func (v *visit) hasEnded(h *half) bool {
	return h.action&maps.FlowEnded != 0 && v.flags&tcpRST == 0
}

// midstream tells whether a packet is one of a connection, and none that begins it.
func (v *visit) midstream() bool { return v.connection() && !v.opens() }

// isLost tells whether nobody knows to whom a packet in the middle of a connection belongs: chance has picked.
func (v *visit) isLost(service *compile.Service, inside bool) bool {
	algorithm := service.OutsideAlgorithm
	if inside {
		algorithm = service.InsideAlgorithm
	}
	return v.midstream() && algorithm != maps.AlgorithmMaglev
}

// foreign looks for the foreign flow of a packet that no flow knows, and may begin none.
func (v *visit) foreign() (result Result, is bool) {
	id := v.id()
	id.edge = maps.EdgeIDForeign
	h := v.flows[id]
	if h == nil || v.opens() {
		return result, false
	}
	if v.hasEnded(h) {
		return v.reject(), true
	}
	v.track(h)
	v.countLeft(&v.counters.PassForeign)
	return v.untouched(), true
}

// carry accounts a packet to its service.
func (v *visit) carry(h *half) {
	traffic := v.trafficOf(h.service)
	if h.forward() {
		traffic.Packets++
		traffic.Bytes += uint64(v.parsed.length)
	} else {
		traffic.ReplyPackets++
		traffic.ReplyBytes += uint64(v.parsed.length)
	}
}

func (v *visit) trafficOf(service compile.ID) *maps.Traffic {
	if v.traffic[service] == nil {
		v.traffic[service] = &maps.Traffic{}
	}
	return v.traffic[service]
}

// open begins a flow with the tuple that the program gave the packet. False: it may not have given it that one.
func (v *visit) open(h *half, snat bool) bool {
	id := v.id()
	reverse := id.other(h.to)
	if !v.free(reverse, id) || !v.portAllowed(h.to, snat) {
		return false
	}
	answers := *h
	answers.to, answers.half = id.tuple.reverse(), maps.FlowHalfReverse
	v.claim(reverse, id, &answers)
	v.embryos[id] = h
	delete(v.silent, id)
	v.born = append(v.born, id, reverse)
	v.remember(h.service, h.backend, v.tuple.from.Addr())
	v.trafficOf(h.service).Flows++
	v.counters.FlowNew++
	v.carry(h)
	return true
}

// portAllowed tells whether the flow may have this source port: the client's where that may be, else any of
// the SNAT range.
func (v *visit) portAllowed(to tuple, snat bool) bool {
	own := v.tuple.from.Port()
	mine := tuple{netip.AddrPortFrom(to.from.Addr(), own), to.to}
	if (!snat || v.inRange(own)) && v.free(v.id().other(mine), v.id()) {
		return to.from.Port() == own
	}
	return v.inRange(to.from.Port())
}

func (v *visit) inRange(port uint16) bool {
	return port >= v.settings.Constants.SNATPortMin && port <= v.settings.Constants.SNATPortMax
}
