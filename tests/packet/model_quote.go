package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/weir-lb/weir/maps"
)

// quote is a packet as an ICMP error quotes it; its offsets are of the frame.
type quote struct {
	parsed
	redirect bool
}

// readQuote returns what the ICMP message quotes. False: it is no error, or there is nothing to know a flow by.
func (p *parsed) readQuote(frame []byte) (q quote, ok bool) {
	if len(frame) < p.transport+8 {
		return q, false
	}
	at := p.transport + 8
	switch kind := frame[p.transport]; {
	case p.ipv6 && kind == 137, !p.ipv6 && kind == 5:
		q.redirect = true
	case p.ipv6 && kind >= 128, !p.ipv6 && !slices.Contains([]uint8{3, 4, 11, 12}, kind):
		return q, false
	}
	if p.ipv6 && q.redirect {
		if at = redirectedAt(frame, at); at == 0 {
			return q, false
		}
	}
	q.ip = at
	return q, q.parseQuote(frame, p.ipv6) && q.parsePorts(frame, p.ip+p.length)
}

// redirectedAt returns where the quoted packet of an ICMPv6 redirect begins, with its options at an offset. 0: nowhere.
func redirectedAt(frame []byte, at int) int {
	at += 32
	for range 3 {
		if len(frame) < at+8 || frame[at+1] == 0 {
			return 0
		}
		if frame[at] == 4 {
			return at + 8
		}
		at += int(frame[at+1]) * 8
	}
	return 0
}

// parseQuote reads the IP header of a packet that has been cut.
func (q *quote) parseQuote(frame []byte, ipv6 bool) bool {
	if q.ip > len(frame) {
		return false
	}
	whole := append(slices.Clone(frame[q.ip:]), make([]byte, 0x20000)...) // so that lengths are right
	present := len(frame) - q.ip
	if ipv6 {
		why := q.parseIPv6(whole)
		if why == fragment {
			why = q.firstFragment(whole)
		}
		return why == understood && present >= 40 && q.transport <= len(frame)
	}
	why := q.parseIPv4(whole)
	first := present >= 20 && binary.BigEndian.Uint16(whole[6:])&0x1fff == 0
	return (why == understood || why == fragment && first) && present >= 20
}

// firstFragment goes past the fragment header of the first fragment.
func (q *quote) firstFragment(ip []byte) reason {
	header := ip[q.transport-q.ip:]
	if binary.BigEndian.Uint16(header[2:])&0xfff8 != 0 {
		return fragment
	}
	q.protocol, q.transport = header[0], q.transport+8
	return understood
}

// parsePorts reads as much as there is of the transport header, in a message that ends there.
func (q *quote) parsePorts(frame []byte, end int) bool {
	if !hasPorts(q.protocol) || q.transport+8 > end {
		return false
	}
	q.transportLength = 8
	if q.tcp() && q.transport+20 <= end {
		q.transportLength = 20
	}
	q.readPorts(frame[q.transport:])
	return true
}

// rewriteQuote returns the frame with another tuple in the quoted packet; the sums of the ICMP message stay right.
func (p *parsed) rewriteQuote(frame []byte, q quote, to tuple) []byte {
	before := frame
	frame = slices.Clone(frame)
	changed := func(all []byte) []byte { return all[q.ip : q.transport+q.transportLength] }
	was := append(q.tuple.addressBytes(), q.tuple.portBytes()...)
	is := append(to.addressBytes(), to.portBytes()...)
	if q.transportLength == 20 || q.protocol == protocolUDP {
		field := q.checksum(frame)
		none := !q.tcp() && field[0]|field[1] == 0
		if !none {
			adjust(field, was, is)
		}
		if !q.tcp() && !none && field[0]|field[1] == 0 {
			field[0], field[1] = 0xff, 0xff
		}
	}
	if !q.ipv6 {
		adjust(frame[q.ip+10:][:2], q.tuple.addressBytes(), to.addressBytes())
	}
	copy(q.addresses(frame), to.addressBytes())
	copy(frame[q.transport:], to.portBytes())
	adjust(frame[p.transport+2:][:2], changed(before), changed(frame))
	return frame
}

// rewriteError returns the ICMP error as it travels on with a half.
func (v *visit) rewriteError(q quote, h *half) []byte {
	frame := v.rewriteQuote(v.frame, q, h.to.reverse())
	to := tuple{v.tuple.from, h.to.to}
	if h.to.from.Addr() != q.tuple.to.Addr() {
		to.from = h.to.from
	}
	if v.ipv6 {
		adjust(frame[v.transport+2:][:2], v.tuple.addressBytes(), to.addressBytes())
	} else {
		adjust(frame[v.ip+10:][:2], v.tuple.addressBytes(), to.addressBytes())
	}
	copy(v.addresses(frame), to.addressBytes())
	v.counters.IcmpTranslated++
	return frame
}

// icmpMessage is a packet that is ICMP.
func (v *visit) icmpMessage() Result {
	ingress := v.program == NodeIngress || v.program == PodIngress
	if v.program.XDP() || ingress && !v.forUs() {
		return v.untouched()
	}
	if result, asked := v.echo(); asked {
		return result
	}
	q, ok := v.readQuote(v.frame)
	if !ok || q.tuple.from.Addr() != v.tuple.to.Addr() {
		return v.icmpUnclaimed(q, ok)
	}
	h := v.halfOf(flowID{q.tuple.reverse(), v.device.Record.EdgeId, q.protocol})
	if h == nil || h.action == maps.FlowForeign {
		return v.icmpUnclaimed(q, true)
	}
	action := h.action &^ maps.FlowEnded
	switch {
	case q.redirect:
		return v.drop(&v.counters.DropIcmpRedirect)
	case v.hasRival(flowID{q.tuple.reverse(), v.device.Record.EdgeId, q.protocol}):
		return v.drop(&v.counters.DropIcmpTry)
	case action == maps.FlowHost:
		return v.hostError(q, h)
	case action == maps.FlowForward && v.program == NodeIngress:
		return v.forwardError(q, h)
	case action == maps.FlowReturn && v.program == PodIngress:
		if v.ttl <= 1 {
			return v.drop(&v.counters.DropIcmpUndeliverable)
		}
		return Result{Redirect, returned(v.hopped(v.rewriteError(q, h)))}
	case action != maps.FlowStack || h.forward() != ingress:
		return v.untouched()
	}
	frame := v.rewriteError(q, h)
	if v.program == NodeEgress && v.canSend(v.departs(h)) {
		return Result{Redirect, frame}
	}
	return Result{Pass, frame}
}

// halfOf returns the half that an ID finds, established or not.
func (v *visit) halfOf(id flowID) *half {
	if h := v.flows[id]; h != nil {
		return h
	}
	return v.embryos[id]
}

// neverForwarded tells whether the kernel has no route for packets from there (rt6_need_strict, net/ipv6/route.c).
func neverForwarded(from netip.Addr) bool {
	return from.Is6() && (from.IsMulticast() || from.IsLinkLocalUnicast() || from.IsLoopback())
}

// forwardError sends an error out again, the way of a half's packets.
func (v *visit) forwardError(q quote, h *half) Result {
	next := v.next(h)
	if v.tagged || next.way == wayStack {
		return v.untouched()
	}
	if v.ttl <= 1 || !v.canSend(next) {
		return v.drop(&v.counters.DropIcmpUndeliverable)
	}
	return Result{Redirect, v.hopped(v.rewriteError(q, h))}
}
