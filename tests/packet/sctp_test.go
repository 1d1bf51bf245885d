package packet

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

func sctpCases() cases { return cases{protocols: []compile.Protocol{compile.SCTP}} }

// chunk returns a packet with another first chunk.
func (f Frame) chunk(kind uint8, tag uint32) Frame {
	f.SCTP = SCTPFields{Chunk: kind, Tag: tag, InitiateTag: f.SCTP.InitiateTag}
	return f
}

// The checksum covers every byte of a packet, of whatever length; the ports are the only ones that change (rule X06).
func TestX06ChecksumOfEveryLength(t *testing.T) {
	forEach(t, sctpCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		for length := range 1400 {
			in.Payload = make([]byte, length)
			for i := range in.Payload {
				in.Payload[i] = byte(i*7 + length)
			}
			tr.expect("eth0", in, Pass, in.translated(in.From, tr.at(tr.Pod, targetPort)))
		}
	})
}

// A checksum that is wrong stays wrong: the receiver shall notice (rule X06).
func TestX06WrongChecksumStaysWrong(t *testing.T) {
	forEach(t, sctpCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		packet := in.Bytes()
		packet[len(packet)-1] ^= 1
		result := tr.run("eth0", packet)
		if tr.tupleOf(result).to != tr.at(tr.Pod, targetPort) {
			tr.Fatalf("the packet goes to %v", tr.tupleOf(result).to)
		}
		if VerifyChecksums(result.Packet, true) == nil {
			tr.Error("the checksum has become right")
		}
	})
}

// captured are packets from port 9999 to 8888 that another implementation has sent, with its checksums: an INIT, a DATA
// and a SHUTDOWN (of gopacket's tests).
var captured = []string{
	"270f22b800000000196b0b4001000024b696b09e0001c000000affffdb856023000c00060005000080000004c0000004",
	"270f22b83280fb42a1e3b23100030019db856024000000010000000062697a7a6c65210a00000000",
	"270f22b83280fb423f295923070000088598b125",
}

// A backend gets what it would have got from the client at first hand, to the last bit: another implementation's
// packet, with the checksum that it had there (rule X06).
func TestX06ChecksumOfAnotherImplementation(t *testing.T) {
	forEach(t, sctpCases(), func(tr *trial) {
		backend := tr.at(tr.Pod, 8888)
		tr.serve(tr.service("web", compile.Backend{Address: backend, Local: true}))
		for _, text := range captured {
			segment, err := hex.DecodeString(text)
			if err != nil {
				tr.Fatal(err)
			}
			in := tr.frame("eth0", tr.at(tr.Client, 9999), tr.at(tr.LoadBalancer, servicePort))
			in.SCTP, in.Payload = SCTPFields{}, make([]byte, len(segment)-16)
			asked := slices.Clone(segment)
			binary.BigEndian.PutUint16(asked[2:], servicePort)
			clear(asked[8:12])
			binary.LittleEndian.PutUint32(asked[8:], castagnoli(asked))
			tr.compare(tr.run("eth0", in.carrying(asked)), Pass, in.translated(in.From, backend).carrying(segment))
		}
	})
}

// carrying returns the packet with another transport header and payload, as long as its own.
func (f Frame) carrying(segment []byte) []byte {
	packet := f.Bytes()
	copy(packet[f.headersLength():], segment)
	return packet
}

// An association begins with an INIT, is established by what the client says after the answer, and ends with a
// SHUTDOWN COMPLETE, or an ABORT of either side: then the next INIT gets a flow of its own (rules X06, X10).
func TestX06Association(t *testing.T) {
	for name, end := range map[string]uint8{"shut down": sctpShutdownComplete, "aborted": sctpAbort} {
		t.Run(name, func(t *testing.T) {
			forEach(t, sctpCases(), func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.Pod)))
				in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
				backend := tr.at(tr.Pod, targetPort)
				says := func(kind uint8) {
					packet := in.chunk(kind, serverTag)
					tr.expect("eth0", packet, Pass, packet.translated(in.From, backend))
				}
				answers := func(kind uint8) {
					packet := in.translated(in.From, backend).answer(tr.Device("eth0").MAC, gatewayMAC()).chunk(kind, clientTag)
					tr.expectOf(NodeEgress, "eth0", packet, Pass, packet.translated(in.To, in.From))
				}
				tr.expect("eth0", in, Pass, in.translated(in.From, backend))
				answers(sctpInitAck)
				says(sctpCookieEcho)
				tr.wantTables(2, 0)
				says(sctpData)
				answers(sctpShutdown)
				says(sctpShutdownAck)
				answers(end)
				tr.expect("eth0", in, Pass, in.translated(in.From, backend))
				tr.wantTables(0, 2)
				tr.expectCounters(maps.PacketCounters{FlowNew: 2, FlowEstablished: 1})
			})
		})
	}
}

// What belongs to no association is answered as its sender believes it: with the tag that an INIT asks for, or the
// packet's own. What ends an association is not answered (RFC 9260, 8.4; rules X06, P06).
func TestX06AbortTag(t *testing.T) {
	c := sctpCases()
	c.programs = []Program{NodeEgress}
	forEach(t, c, func(tr *trial) {
		tr.serveNothing()
		in := tr.hostFrame(clientPort, tr.at(tr.ClusterIP, servicePort))
		want := in.translated(in.To, in.From)
		want.SourceMAC, want.DestinationMAC, want.Payload = in.DestinationMAC, in.SourceMAC, nil
		for kind, answer := range map[uint8]SCTPFields{
			sctpInit: {Chunk: sctpAbort, Tag: clientTag},
			sctpData: {Chunk: sctpAbort, Tag: serverTag, Flags: 1},
		} {
			packet := in
			if kind != sctpInit {
				packet = in.chunk(kind, serverTag)
			}
			want.SCTP = answer
			tr.compareUnpadded(tr.run("eth0", packet.Bytes()), Redirect, want)
		}
		for _, kind := range []uint8{sctpAbort, sctpShutdownComplete} {
			tr.expectDrop("eth0", in.chunk(kind, serverTag))
		}
	})
}

// A packet without a chunk, or with an INIT that is cut, is none.
func TestX06Malformed(t *testing.T) {
	forEach(t, sctpCases(), func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		for _, length := range []int{0, 11, 12, 15, 19} {
			in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
			packet := in.Bytes()
			if tr.family == compile.IPv6 {
				binary.BigEndian.PutUint16(packet[18:], uint16(length))
			} else {
				binary.BigEndian.PutUint16(packet[16:], uint16(20+length))
				setHeaderChecksum(packet[14:34])
			}
			tr.expectUntouched("eth0", packet)
		}
		tr.wantTables(0, 0)
	})
}

// A checksum that is left to the device stays as it is: it is made of the packet that leaves (rule X06).
func TestX06PartialChecksum(t *testing.T) {
	c := sctpCases()
	onWire(t, c, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		tr.attachPod("pod0")
		pod, backend := tr.wire("pod0", true), tr.wire("pod1", true)
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		tr.must(pod.SendAs(sctpPartial(in)))
		want := tr.routed(in.translated(in.From, tr.at(tr.OtherPod, targetPort)), "pod1", podMAC())
		_, frame := sctpPartial(want)
		tr.must(backend.ExpectPartial(frame, patience))
		tr.serveNothing()
		in.From = tr.at(tr.Pod, clientPort+1)
		tr.must(pod.SendAs(sctpPartial(in)))
		_, frame = sctpPartial(resetOf(in, 0, 0, false))
		tr.must(pod.ExpectPartial(frame[:14+headersOf(in)+16], patience))
	})
}

// sctpPartial returns the header that leaves the checksum to the device, and the frame with none.
func sctpPartial(f Frame) (header [vnetHeader]byte, frame []byte) {
	frame = f.Bytes()
	at := 14 + headersOf(f)
	clear(frame[at+8 : at+12])
	header[0], header[6], header[8] = 1, byte(at), 8
	return header, frame
}
