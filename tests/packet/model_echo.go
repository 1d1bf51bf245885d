package packet

import (
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// vipsOf returns the addresses of services, and whose pings they answer (rule C09).
func vipsOf(services []compile.Service) map[netip.Addr]uint32 {
	vips := make(map[netip.Addr]uint32)
	for _, service := range services {
		for _, frontend := range service.Frontends {
			if frontend.Kind == compile.NodePort {
				continue
			}
			vips[frontend.Address.Addr()] |= 0 // it is one
			if frontend.Kind == compile.LoadBalancer && service.Restricted {
				continue
			}
			if len(service.Inside) > 0 {
				vips[frontend.Address.Addr()] |= maps.VIPAnswersInside
			}
			if len(service.Outside) > 0 {
				vips[frontend.Address.Addr()] |= maps.VIPAnswersOutside
			}
		}
	}
	return vips
}

// echo is an ICMP message that may be a ping of a VIP. False: it is none that is answered.
func (v *visit) echo() (Result, bool) {
	side := map[Program]uint32{NodeIngress: maps.VIPAnswersOutside, PodIngress: maps.VIPAnswersInside, NodeEgress: maps.VIPAnswersInside}[v.program]
	request, reply := uint8(8), uint8(0)
	if v.ipv6 {
		request, reply = 128, 129
	}
	from, to := v.tuple.from.Addr(), v.tuple.to.Addr()
	if v.transport+8 > min(v.ip+v.parsed.length, len(v.frame)) || v.frame[v.transport] != request || v.frame[v.transport+1] != 0 {
		return Result{}, false
	}
	if v.vips[to]&side == 0 || v.nodeAddrs[to] || !isHost(from) || !isHost(to) {
		return Result{}, false
	}
	if v.echoes[v.program]++; v.echoes[v.program] > icmpRate {
		return v.drop(&v.counters.IcmpLimited), true
	}
	v.counters.IcmpEcho++
	return Result{Redirect, returned(v.reply(reply))}, true
}

// reply returns the answer to a ping but for its MACs.
func (v *visit) reply(kind uint8) []byte {
	frame := append([]byte(nil), v.frame...)
	message, ip := frame[v.transport:], frame[v.ip:]
	adjust(message[2:4], message[:2], []byte{kind, 0})
	message[0] = kind
	copy(v.addresses(frame), v.tuple.reverse().addressBytes())
	if v.ipv6 {
		ip[7] = 64
		return frame
	}
	adjust(ip[10:12], []byte{ip[8], 0}, []byte{64, 0})
	ip[8] = 64
	return frame
}
