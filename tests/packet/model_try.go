package packet

import "github.com/weir-lb/weir/maps"

// answers is the action of the flows whose answers the program sees where they are the backend's.
func (v *visit) answers() maps.FlowAction {
	switch v.program {
	case NodeXDP, NodeIngress:
		return maps.FlowForward
	case PodIngress:
		return maps.FlowReturn
	default:
		return maps.FlowStack
	}
}

// lookupAnswer is a packet that a reverse half among the embryos is found by.
func (v *visit) lookupAnswer(id flowID, h *half) (*half, found) {
	if h.action == v.answers() && !v.isFirst(id, h) {
		return nil, lost
	}
	return h, hit
}

// isFirst tells whether an answer is of the backend that has the flow, or gets it now.
func (v *visit) isFirst(id flowID, h *half) bool {
	if h.state != maps.FlowUnanswered {
		return h.state != maps.FlowLost
	}
	if !h.retry {
		h.state = maps.FlowAnswered
		return true
	}
	if v.flags&tcpRST == 0 && v.wins(id, h) {
		return true
	}
	h.state = maps.FlowLost
	return false
}

// wins gives the flow to a retry, if nobody has answered before.
func (v *visit) wins(id flowID, h *half) bool {
	forwardID := id.other(h.to)
	forward := v.embryos[forwardID]
	if forward == nil || !v.defeatsFirst(forwardID, forward) {
		return false
	}
	h.state, h.retry = maps.FlowAnswered, false
	won := *h
	won.to, won.half, won.state = id.tuple.reverse(), maps.FlowHalfForward, maps.FlowUnanswered
	v.embryos[forwardID] = &won
	delete(v.silent, forwardID)
	v.counters.FlowMoved++
	if service, _ := v.serviceAt(forwardID.tuple.to); service != nil {
		v.remember(service.ID, h.backend, forwardID.tuple.from.Addr())
	}
	return true
}

// defeatsFirst makes the try that a forward half leads to a loser, if it has not been answered.
func (v *visit) defeatsFirst(forwardID flowID, forward *half) bool {
	firstID := forwardID.other(forward.to)
	first := v.embryos[firstID]
	if first == nil { // evicted
		loser := *forward
		loser.to, loser.half, loser.state = forwardID.tuple.reverse(), maps.FlowHalfReverse, maps.FlowLost
		v.embryos[firstID] = &loser
		return true
	}
	if first.to != forwardID.tuple.reverse() || first.state != maps.FlowUnanswered {
		return false
	}
	first.state = maps.FlowLost
	return true
}

// hasRival tells whether an error about a try is none for the client: another one has the flow, or may get it.
func (v *visit) hasRival(id flowID) bool {
	try := v.embryos[id]
	switch {
	case try == nil || try.forward():
		return false
	case try.state == maps.FlowLost:
		return true
	case !try.retry:
		return false
	}
	forwardID := id.other(try.to)
	forward := v.embryos[forwardID]
	if forward == nil {
		return v.flows[forwardID] != nil
	}
	return v.embryos[forwardID.other(forward.to)] != nil
}

// refuseLost is an answer of a backend that does not have the flow: it is told so.
func (v *visit) refuseLost() Result {
	if v.program.XDP() {
		return v.passUp()
	}
	v.counters.DropLostTry++
	return v.refuse()
}

// openOr opens a flow, or another try of the one whose backend is silent.
func (v *visit) openOr(tried, h *half, snat bool) bool {
	if tried != nil {
		return v.retry(h, snat)
	}
	return v.open(h, snat)
}

// retry opens another try of a flow, with the tuple that the program gave the packet. False: it may not have given it
// that one.
func (v *visit) retry(h *half, snat bool) bool {
	id := v.id()
	reverse := id.other(h.to)
	if !v.free(reverse, id) || !v.portAllowed(h.to, snat) {
		return false
	}
	answers := *h
	answers.to, answers.half, answers.retry = id.tuple.reverse(), maps.FlowHalfReverse, true
	v.claim(reverse, id, &answers)
	delete(v.silent, id)
	v.born = append(v.born, reverse)
	v.counters.FlowRetried++
	v.carry(h)
	return true
}
