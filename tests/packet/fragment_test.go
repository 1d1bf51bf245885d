package packet

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// fragments builds a datagram and cuts it into packets with that much of it in each, a multiple of 8 bytes.
func (f Frame) fragments(id uint32, size int) [][]byte {
	var bounds []int
	for bound := size; bound < len(f.Bytes())-f.headersLength(); bound += size {
		bounds = append(bounds, bound)
	}
	return f.cutAt(id, bounds)
}

// headersLength is how much is before the transport header.
func (f Frame) headersLength() int {
	if f.ipv6() {
		return 14 + headerLength(compile.IPv6)
	}
	return 14 + headerLength(compile.IPv4)
}

// cutAt builds a datagram and cuts it where pieces shall begin, counted from the transport header.
func (f Frame) cutAt(id uint32, bounds []int) [][]byte {
	packet, headers := f.Bytes(), f.headersLength()
	body := packet[headers:]
	var all [][]byte
	offset := 0
	for _, end := range append(slices.Clone(bounds), len(body)) {
		piece := body[offset:end]
		more := uint16(0)
		if end < len(body) {
			more = 1
		}
		header := slices.Clone(packet[:headers])
		ip := header[14:]
		if f.ipv6() {
			binary.BigEndian.PutUint16(ip[4:], uint16(8+len(piece)))
			next := ip[6]
			ip[6] = 44
			header = append(header, next, 0)
			header = binary.BigEndian.AppendUint16(header, uint16(offset)|more)
			header = binary.BigEndian.AppendUint32(header, id)
		} else {
			binary.BigEndian.PutUint16(ip[2:], uint16(20+len(piece)))
			binary.BigEndian.PutUint16(ip[4:], uint16(id))
			binary.BigEndian.PutUint16(ip[6:], uint16(offset/8)|more<<13)
			setHeaderChecksum(ip[:20])
		}
		all = append(all, append(header, piece...))
		offset = end
	}
	return all
}

// large makes a datagram one that takes several packets.
func (f Frame) large(length int) Frame {
	f.Payload = make([]byte, length)
	for i := range f.Payload {
		f.Payload[i] = byte(i*7 + i>>8)
	}
	return f
}

func fragmentCases(programs ...Program) cases {
	return cases{programs: programs, protocols: []compile.Protocol{compile.UDP}}
}

// expectFragments runs every fragment of a datagram, in order, through a program.
func (tr *trial) expectFragments(program Program, device string, in Frame, verdict Verdict, want Frame) {
	tr.Helper()
	wanted := want.fragments(77, 1200)
	for i, fragment := range in.fragments(77, 1200) {
		tr.compare(tr.runProgram(program, device, fragment), verdict, wanted[i])
	}
}

// A datagram in fragments goes where one in a packet does, and so does the answer (rule X05).
func TestX05Fragments(t *testing.T) {
	t.Run("local", func(t *testing.T) {
		forEach(t, fragmentCases(NodeIngress), func(tr *trial) {
			in, translated := tr.toLocal()
			for range 2 { // as an embryo, and established
				tr.expectFragments(NodeIngress, "eth0", in.large(3000), Pass, translated.large(3000))
				answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC()).large(4000)
				tr.expectFragments(NodeEgress, "eth0", answer, Pass, answer.translated(in.To, in.From))
			}
			tr.wantTables(2, 0)
		})
	})
	t.Run("remote", func(t *testing.T) {
		forEach(t, fragmentCases(NodeIngress), func(tr *trial) {
			in, translated := tr.toRemote()
			for range 2 {
				tr.expectFragments(NodeIngress, "eth0", in.large(3000), Redirect, tr.sent(translated, "eth0", gatewayMAC()).large(3000))
				answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC).large(4000)
				want := tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC())
				tr.expectFragments(NodeIngress, "eth0", answer, Redirect, want)
			}
		})
	})
	t.Run("pod", func(t *testing.T) {
		forEach(t, fragmentCases(PodIngress), func(tr *trial) {
			tr.serve(tr.service("web", tr.remote(tr.Remote)))
			in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort)).large(3000)
			translated := in.translated(in.From, tr.at(tr.Remote, targetPort))
			tr.expectFragments(PodIngress, "pod0", in, Pass, translated)
			answer := translated.answer(tr.Device("pod0").MAC, podMAC()).large(4000)
			tr.expectFragments(PodEgress, "pod0", answer, Pass, answer.translated(in.To, in.From))
		})
	})
}

// UDP without a checksum has none in its fragments either (rules X05, X07).
func TestX05FragmentsWithoutChecksum(t *testing.T) {
	c := fragmentCases(NodeIngress)
	c.families = []compile.Family{compile.IPv4}
	forEach(t, c, func(tr *trial) {
		in, translated := tr.toLocal()
		in.NoChecksum, translated.NoChecksum = true, true
		tr.expectFragments(NodeIngress, "eth0", in.large(3000), Pass, translated.large(3000))
	})
}

// XDP leaves fragments to tc; those of nobody's datagrams are left alone there.
func TestX05FragmentsLeftAlone(t *testing.T) {
	forEach(t, fragmentCases(NodeXDP, NodeIngress, NodeEgress), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.Remote, servicePort)).large(3000)
		fragments := in.fragments(5, 1200)
		for _, i := range []int{2, 0, 1} {
			tr.expectUntouched("eth0", fragments[i])
		}
		tr.expectCounters(maps.PacketCounters{PassFragment: 1})
	})
	forEach(t, fragmentCases(NodeXDP), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).large(3000)
		for _, fragment := range in.fragments(5, 1200) {
			tr.expectUntouched("eth0", fragment)
		}
	})
}

// A first fragment that comes again, and one that overlaps another, are translated as they are; the receiver decides.
func TestX05FragmentsOverlap(t *testing.T) {
	forEach(t, fragmentCases(NodeIngress), func(tr *trial) {
		in, translated := tr.toLocal()
		in, translated = in.large(3000), translated.large(3000)
		for _, size := range []int{1200, 800, 4000} { // of IPv6 the last is a fragment that is all
			wanted := translated.fragments(7, size)
			for i, fragment := range in.fragments(7, size) {
				tr.compare(tr.run("eth0", fragment), Pass, wanted[i])
			}
		}
	})
}

// ageDatagrams lets so much time pass that an identification may be another datagram's.
func (tr *trial) ageDatagrams() {
	tr.Helper()
	var key [40]byte
	var datagram struct{ Seal, Seen, State, Ports, Held uint32 }
	for all := tr.Maps.Fragments.Iterate(); all.Next(&key, &datagram); {
		datagram.Seen -= 3 * tr.model.settings.Constants.JiffiesPerSecond
		tr.must(tr.Maps.Fragments.Put(&key, &datagram))
	}
	clear(tr.model.datagrams)
}

// A datagram that is never completed does not go on with a later one of the same identification.
func TestX05FragmentsOfAnotherTime(t *testing.T) {
	forEach(t, fragmentCases(NodeIngress, PodIngress), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device, from := tr.askedBy()
		in := tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort)).large(3000)
		fragments, wanted := in.fragments(3, 1200), in.translated(in.From, tr.at(tr.OtherPod, targetPort)).fragments(3, 1200)
		if result := tr.run(device, fragments[1]); result.Verdict != Drop {
			tr.Errorf("the verdict is %s", result.Verdict)
		}
		tr.ageDatagrams()
		tr.compare(tr.run(device, fragments[0]), Pass, wanted[0])
		tr.compare(tr.run(device, fragments[2]), Pass, wanted[2])
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, FragmentHeld: 1})
	})
}

// A first fragment that ends inside the transport header says too little, and so all of its datagram are left alone.
func TestX05TinyFragments(t *testing.T) {
	c := cases{programs: []Program{NodeIngress, PodIngress}, protocols: []compile.Protocol{compile.TCP}}
	forEach(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device, from := tr.askedBy()
		fragments := tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort)).fragments(3, 8)
		for _, fragment := range fragments {
			tr.expectUntouched(device, fragment)
		}
		tr.expectCounters(maps.PacketCounters{PassFragment: uint64(len(fragments))})
	})
	// The header of UDP is as long as the shortest fragment.
	forEach(t, fragmentCases(NodeIngress), func(tr *trial) {
		in, translated := tr.toLocal()
		wanted := translated.fragments(9, 8)
		for i, fragment := range in.fragments(9, 8) {
			tr.compare(tr.run("eth0", fragment), Pass, wanted[i])
		}
	})
}

// Of a fragment that cannot go on its sender is told if it is the first, which says whose it is (RFC 1812, 4.3.2.7).
func TestX05FragmentsExpire(t *testing.T) {
	forEach(t, fragmentCases(NodeIngress), func(tr *trial) {
		in, _ := tr.toRemote()
		in.TTL = 1
		for i, fragment := range in.large(2000).fragments(7, 1200) {
			if verdict := tr.run("eth0", fragment).Verdict; verdict != []Verdict{Redirect, Drop}[i] {
				tr.Errorf("the verdict of fragment %d is %s", i, verdict)
			}
		}
		tr.expectCounters(maps.PacketCounters{FlowNew: 1, IcmpTimeExceeded: 2, DropFragment: 1})
	})
}

// More fragments than a datagram can have are not held.
func TestX05FragmentsNeverCompleted(t *testing.T) {
	forEach(t, fragmentCases(NodeIngress, PodIngress), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device, from := tr.askedBy()
		in := tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort)).large(40_000)
		fragments := in.fragments(3, 600)
		for _, fragment := range fragments[1:] {
			if result := tr.run(device, fragment); result.Verdict != Drop {
				tr.Fatalf("the verdict is %s", result.Verdict)
			}
		}
		tr.expectCounters(maps.PacketCounters{FragmentHeld: mostHeld, DropFragment: uint64(len(fragments) - 1 - mostHeld)})
	})
}
