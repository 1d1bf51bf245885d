package packet

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Lengths and versions that contradict each other: the packet is left alone, and counted.
func TestMalformed(t *testing.T) {
	type change func(ip []byte) []byte
	set16 := func(offset int, value uint16) change {
		return func(ip []byte) []byte { binary.BigEndian.PutUint16(ip[offset:], value); return ip }
	}
	set8 := func(offset int, value byte) change {
		return func(ip []byte) []byte { ip[offset] = value; return ip }
	}
	ipv4 := map[string]change{
		"version 6":                  set8(0, 0x65),
		"version 0":                  set8(0, 0x05),
		"header of no length":        set8(0, 0x40),
		"header below its minimum":   set8(0, 0x44),
		"header beyond total length": set8(0, 0x4f),
		"no total length":            set16(2, 0),
		"total length below header":  set16(2, 19),
		"only the IP header":         set16(2, 20),
		"total length in the ports":  set16(2, 23),
		"total length in transport":  set16(2, 27),
		"total length beyond":        func(ip []byte) []byte { return set16(2, uint16(len(ip)+1))(ip) },
		"largest total length":       set16(2, 0xffff),
	}
	ipv6 := map[string]change{
		"version 4":             set8(0, 0x40),
		"version 0":             set8(0, 0x00),
		"no payload":            set16(4, 0),
		"payload in the ports":  set16(4, 3),
		"payload in transport":  set16(4, 7),
		"payload length beyond": func(ip []byte) []byte { return set16(4, uint16(len(ip)-39))(ip) },
		"largest payload":       set16(4, 0xffff),
	}
	tcp := map[string]change{
		"no data offset":          set8(12, 0),
		"data offset below 5":     set8(12, 4<<4),
		"data offset beyond":      set8(12, 15<<4),
		"data offset just beyond": set8(12, 7<<4), // 20 bytes of header and 4 of payload
	}
	udp := map[string]change{
		"no UDP length":           set16(4, 0),
		"UDP length below header": set16(4, 7),
		"UDP length beyond":       set16(4, 13), // 8 bytes of header and 4 of payload
		"largest UDP length":      set16(4, 0xffff),
	}
	run := func(name string, c cases, transport bool, change change) {
		t.Run(name, func(t *testing.T) {
			left(t, c, func(tr *trial, in Frame) []byte {
				in.Payload = []byte("four")
				p, _ := parse(in.Bytes())
				packet := in.Bytes()[:p.ip+p.length]
				offset := p.ip
				if transport {
					offset = p.transport
				}
				change(packet[offset:])
				return packet
			}, passMalformed)
		})
	}
	for name, change := range ipv4 {
		run("IPv4/"+name, cases{families: []compile.Family{compile.IPv4}}, false, change)
	}
	for name, change := range ipv6 {
		run("IPv6/"+name, cases{families: []compile.Family{compile.IPv6}}, false, change)
	}
	for name, change := range tcp {
		run("TCP/"+name, cases{protocols: []compile.Protocol{compile.TCP}}, true, change)
	}
	for name, change := range udp {
		run("UDP/"+name, cases{protocols: []compile.Protocol{compile.UDP}}, true, change)
	}
}

// A packet cut off at any byte is left alone, and counted.
func TestTruncated(t *testing.T) {
	shapes := map[string]func(tr *trial, in *Frame){
		"plain": func(*trial, *Frame) {},
		"tags":  func(_ *trial, in *Frame) { in.VLANs = []uint16{20, 10} },
		"options": func(tr *trial, in *Frame) {
			if tr.family == compile.IPv4 {
				in.Options = slices.Repeat([]byte{1}, 8)
			} else {
				in.Extensions = []Extension{hopByHop(), routingHeader(0), destinationOptions()}
			}
			in.TCP.Options = slices.Repeat([]byte{1}, 12)
		},
	}
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			forEach(t, cases{programs: allPrograms()}, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.OtherPod)))
				device := "eth0"
				if tr.program == PodIngress || tr.program == PodEgress {
					device = "pod0"
				}
				in := tr.frame(device, tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
				shape(tr, &in)
				in.Payload = []byte("short")
				tr.truncateEverywhere(device, in)
			})
		})
	}
}

func (tr *trial) truncateEverywhere(device string, in Frame) {
	tr.Helper()
	whole := in.Bytes()
	p, _ := parse(whole)
	counted := uint64(0)
	for length := shortestPacket; length < p.ip+p.length; length++ {
		if !tr.program.XDP() && !kernelRuns(in, length) {
			tr.expectRefused(device, whole[:length])
			continue
		}
		tr.expectUntouched(device, whole[:length])
		counted++
	}
	tr.expectCounters(maps.PacketCounters{PassMalformed: counted})
}

// kernelRuns tells whether BPF_PROG_TEST_RUN makes a socket buffer of a packet that short. TestTruncatedOnTheWire
// has the others.
func kernelRuns(in Frame, length int) bool {
	header := 20
	if in.ipv6() {
		header = 40
	}
	return len(in.VLANs) > 0 || length >= 14+header
}

func (tr *trial) expectRefused(device string, packet []byte) {
	tr.Helper()
	if _, err := tr.World.Run(tr.program, tr.Device(device), packet); !errors.Is(err, unix.EINVAL) {
		tr.Fatalf("the kernel says %v of a packet of %d bytes", err, len(packet))
	}
}
