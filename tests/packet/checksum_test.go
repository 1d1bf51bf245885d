package packet

import (
	"encoding/binary"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
)

// The verifier of checksums accepts a right packet and notices every byte that is another.
func TestVerifyChecksums(t *testing.T) {
	hosts := NewHosts()
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP} {
			packet := Frame{
				SourceMAC: mac(1), DestinationMAC: mac(2), From: hosts.Client.Port(family, 1), To: hosts.Pod.Port(family, 2),
				Protocol: protocol, TTL: 64, Payload: []byte("odd payload of 31 bytes, no more"),
			}.Bytes()
			if err := VerifyChecksums(packet, true); err != nil {
				t.Fatalf("%s %s: %v", family, protocol, err)
			}
			p, _ := parse(packet)
			for _, offset := range []int{p.ip + 12, p.ip + 18, p.transport, p.transport + 3, len(packet) - 1} {
				packet[offset] ^= 0x10
				if VerifyChecksums(packet, true) == nil {
					t.Errorf("%s %s: a change at %d is not noticed", family, protocol, offset)
				}
				packet[offset] ^= 0x10
			}
		}
	}
}

// The checksum of RFC 1071's example.
func TestInternetSum(t *testing.T) {
	if sum := internetSum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); sum != 0xddf2 {
		t.Errorf("the sum is %#x", sum)
	}
}

// bothWays runs a packet of a client and the answer to it, through local and remote backends.
func bothWays(t *testing.T, c cases, change func(tr *trial, f *Frame, translated bool)) {
	t.Helper()
	t.Run("local", func(t *testing.T) {
		forEach(t, c, func(tr *trial) {
			tr.serve(tr.service("web", tr.local(tr.Pod)))
			in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
			translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
			change(tr, &translated, true)
			in.Payload, in.NoChecksum = translated.Payload, translated.NoChecksum
			tr.expect("eth0", in, Pass, translated)
			answer := translated.answer(tr.Device("eth0").MAC, gatewayMAC())
			back := answer.translated(in.To, in.From)
			change(tr, &back, true)
			answer.Payload = back.Payload
			tr.expectOf(NodeEgress, "eth0", answer, Pass, back)
		})
	})
	t.Run("remote", func(t *testing.T) {
		forEach(t, c, func(tr *trial) {
			tr.serve(tr.service("web", tr.remote(tr.Remote)))
			in := tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort))
			translated := tr.sent(in.translated(tr.at(tr.NodeEth0, 61500), tr.at(tr.Remote, targetPort)), "eth0", gatewayMAC())
			change(tr, &translated, true)
			in.Payload, in.NoChecksum = translated.Payload, translated.NoChecksum
			tr.expect("eth0", in, tr.sentVerdict(true), translated)
			answer := translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
			back := tr.sent(answer.translated(in.To, in.From), "eth0", gatewayMAC())
			change(tr, &back, true)
			answer.Payload = back.Payload
			tr.expect("eth0", answer, tr.sentVerdict(true), back)
		})
	})
}

// UDP without a checksum has none behind us either (rule X07).
func TestX07NoChecksumStaysNone(t *testing.T) {
	c := cases{protocols: []compile.Protocol{compile.UDP}, families: []compile.Family{compile.IPv4}}
	bothWays(t, c, func(_ *trial, f *Frame, _ bool) { f.NoChecksum = true })
}

// A checksum that comes out as 0 is sent as 0xffff where 0 means none, and as 0 in TCP (rule X07).
func TestX07ComputedZero(t *testing.T) {
	bothWays(t, cases{protocols: withSockets()}, func(tr *trial, f *Frame, _ bool) {
		f.Payload = []byte{0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18}
		copy(f.Payload, tr.checksumOf(*f))
		want := uint16(0)
		if tr.protocol == compile.UDP {
			want = 0xffff
		}
		if got := binary.BigEndian.Uint16(tr.checksumOf(*f)); got != want {
			tr.Fatalf("the payload makes the checksum %#x", got)
		}
	})
}

// checksumOf returns a frame's transport checksum.
func (tr *trial) checksumOf(f Frame) []byte {
	tr.Helper()
	packet := f.Bytes()
	p, why := parse(packet)
	if why != understood {
		tr.Fatal("the frame is not one that can be read")
	}
	return p.checksum(packet)
}

// A checksum of 0xffff, which is a computed 0, is one like any other.
func TestX07ZeroOnArrival(t *testing.T) {
	forEach(t, cases{protocols: []compile.Protocol{compile.UDP}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.Payload = make([]byte, 24)
		copy(in.Payload, tr.checksumOf(in))
		if got := binary.BigEndian.Uint16(tr.checksumOf(in)); got != 0xffff {
			tr.Fatalf("the payload makes the checksum %#x", got)
		}
		tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
	})
}

// A wrong checksum stays wrong: the receiver shall notice what the network has done.
func TestWrongChecksumStaysWrong(t *testing.T) {
	forEach(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)).Bytes()
		in[len(in)-3] ^= 0x40
		result := tr.run("eth0", in)
		if VerifyChecksums(result.Packet, true) == nil {
			tr.Error("the checksum is right")
		}
	})
}

// A checksum that the device has computed over the whole packet is right behind the program as well, in IPv6
// too, where that takes a flag of the kernel's.
func TestChecksumComplete(t *testing.T) {
	forEach(t, cases{programs: []Program{NodeIngress, PodIngress}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		device, from := tr.askedBy()
		in := tr.podFrame(device, from, tr.at(tr.LoadBalancer, servicePort))
		// The kernel sums the packet anew behind the program, and refuses if the two differ.
		result, err := tr.RunSummed(tr.program, tr.Device(device), in.Bytes())
		if err != nil {
			tr.Fatal(err)
		}
		if err := tr.model.Check(tr.program, tr.Device(device), in.Bytes(), result); err != nil {
			tr.Error(err)
		}
	})
}
