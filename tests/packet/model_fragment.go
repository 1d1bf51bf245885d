package packet

import (
	"encoding/binary"
	"net/netip"
)

// part is what a packet is of a datagram.
type part int

const (
	whole part = iota
	first      // fragment, with the transport header
	later
)

// fragmentID is what all fragments of a datagram have.
type fragmentID struct {
	from, to netip.Addr
	id       uint32
	edge     uint16
	protocol uint8
}

// datagram is what is known of one that comes in fragments. Nothing of a test takes as long as it counts.
type datagram struct {
	known    bool   // its ports
	left     bool   // alone: the first has no ports
	from, to uint16 // ports
	held     int    // fragments
}

// The most fragments of a datagram that are held, and bytes of one.
const (
	mostHeld      = 64
	mostHeldBytes = 1600
	mostCut       = 9216 // bytes of an IP packet
)

// readFragment reads what says of which datagram a fragment is. False: of none that has ports.
func (p *parsed) readFragment(frame []byte) (id uint32, ok bool) {
	if p.ipv6 {
		if len(frame) < p.transport+8 {
			return 0, false
		}
		header := frame[p.transport:]
		id, p.protocol, p.transport = binary.BigEndian.Uint32(header[4:]), header[0], p.transport+8
		p.part = partOf(binary.BigEndian.Uint16(header[2:]) & 0xfff8)
	} else {
		id = uint32(binary.BigEndian.Uint16(frame[p.ip+4:]))
		p.part = partOf(binary.BigEndian.Uint16(frame[p.ip+6:]) & 0x1fff)
	}
	if p.protocol != protocolTCP && p.protocol != protocolUDP {
		return id, false
	}
	return id, true
}

func partOf(offset uint16) part {
	if offset == 0 {
		return first
	}
	return later
}

// readFirst reads the transport header of a first fragment, all of which must be there that is rewritten.
func (p *parsed) readFirst(frame []byte) bool {
	p.transportLength = 8
	if p.tcp() {
		p.transportLength = 20
	}
	if p.transport+p.transportLength > min(p.ip+p.length, len(frame)) {
		return false
	}
	if p.tcp() {
		p.flags = frame[p.transport+13]
	}
	p.readPorts(frame[p.transport:])
	return true
}

// fragment is a packet that is one.
func (v *visit) fragment() (Result, error) {
	ingress := v.program == NodeIngress || v.program == PodIngress
	if v.program.XDP() {
		return v.untouched(), nil
	}
	if ingress && !v.forUs() {
		return v.leaveFragment(), nil
	}
	id, ok := v.readFragment(v.frame)
	if !ok {
		return v.leaveStray(), nil
	}
	key := fragmentID{v.tuple.from.Addr(), v.tuple.to.Addr(), id, v.device.Record.EdgeId, v.protocol}
	if v.part == first {
		return v.firstFragment(key)
	}
	d := v.datagrams[key]
	switch {
	case d.known:
		v.tuple = tuple{netip.AddrPortFrom(key.from, d.from), netip.AddrPortFrom(key.to, d.to)}
		return v.arrive()
	case d.left && v.program != NodeEgress:
		return v.leaveFragment(), nil
	case v.program == NodeEgress && (v.isVIP() || v.hostStrays()):
		return v.drop(&v.counters.DropFragment), nil
	case v.program != NodeEgress && v.mayBeOurs():
		return v.hold(key), nil
	default:
		return v.leaveFragment(), nil
	}
}

// firstFragment has the ports of the others, or too little for ports: then they are all left alone.
func (v *visit) firstFragment(key fragmentID) (Result, error) {
	whole := v.readFirst(v.frame)
	if !whole && v.program == NodeEgress {
		return v.leaveStray(), nil
	}
	held := v.datagrams[key].held
	v.datagrams[key] = datagram{known: whole, left: !whole, from: v.tuple.from.Port(), to: v.tuple.to.Port()}
	switch {
	case held > 0 && v.program != NodeEgress:
		return Result{Verdict: Drop}, nil // it goes round again
	case whole:
		return v.arrive()
	default:
		return v.leaveFragment(), nil
	}
}

func (v *visit) isVIP() bool {
	_, vip := v.vips[v.tuple.to.Addr()]
	return vip
}

// mayBeOurs tells whether a fragment of an unknown datagram is held.
func (v *visit) mayBeOurs() bool {
	return v.device.Record.EdgeId != 0 || v.isVIP() || v.nodeAddrs[v.tuple.to.Addr()]
}

// hold keeps a fragment until the first comes.
func (v *visit) hold(key fragmentID) Result {
	d := v.datagrams[key]
	room := d.held < mostHeld && len(v.frame) <= mostHeldBytes
	d.held++
	v.datagrams[key] = d
	switch {
	case room:
		return v.drop(&v.counters.FragmentHeld)
	case v.isVIP():
		return v.drop(&v.counters.DropFragment)
	default:
		return v.leaveFragment()
	}
}

// leaveStray is a fragment of which no ports can be told.
func (v *visit) leaveStray() Result {
	if v.hostStrays() {
		return v.drop(&v.counters.DropHostUntranslated)
	}
	return v.leaveFragment()
}

func (v *visit) leaveFragment() Result {
	v.countLeft(&v.counters.PassFragment)
	return v.untouched()
}
