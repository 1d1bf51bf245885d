package packet

import (
	"encoding/binary"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// What XDP leaves alone it passes up unchanged to tc of the same device: it is counted there, once.
func TestLeftAloneIsCountedOnce(t *testing.T) {
	all := []compile.Protocol{compile.TCP, compile.UDP}
	for name, test := range map[string]struct {
		family    compile.Family
		protocols []compile.Protocol
		frame     func(tr *trial, in Frame) []byte
		want      maps.PacketCounters
	}{
		"malformed": {compile.IPv4, all, func(_ *trial, in Frame) []byte {
			packet := in.Bytes()
			binary.BigEndian.PutUint16(packet[16:], 9000)
			setHeaderChecksum(packet[14:34])
			return packet
		}, maps.PacketCounters{PassMalformed: 1}},
		"fragment": {compile.IPv4, all, func(tr *trial, in Frame) []byte {
			in.To = tr.at(tr.Remote, servicePort)
			return in.fragment(1, 16, true)
		}, maps.PacketCounters{PassFragment: 1}},
		"extension": {compile.IPv6, all, func(_ *trial, in Frame) []byte {
			in.Extensions = []Extension{routingHeader(1)}
			return in.Bytes()
		}, maps.PacketCounters{PassExtension: 1}},
		"not for us": {compile.IPv4, all, func(_ *trial, in Frame) []byte {
			in.DestinationMAC = strangerMAC()
			return in.Bytes()
		}, maps.PacketCounters{PassNotForUs: 1}},
		"foreign": {compile.IPv4, all, func(tr *trial, _ Frame) []byte {
			out, answer := tr.outbound(nodePort)
			tr.runProgram(NodeEgress, "eth0", out.Bytes())
			return answer.Bytes()
		}, maps.PacketCounters{FlowForeign: 1, PassForeign: 1}},
		"without flow": {compile.IPv4, []compile.Protocol{compile.TCP}, func(tr *trial, in Frame) []byte {
			in.To = tr.at(tr.NodeEth0, nodePort)
			return in.later().Bytes()
		}, maps.PacketCounters{PassWithoutFlow: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			c := cases{
				families: []compile.Family{test.family}, protocols: test.protocols, programs: []Program{NodeIngress},
			}
			forEach(t, c, func(tr *trial) {
				tr.serve(tr.service("web", tr.local(tr.OtherPod)))
				packet := test.frame(tr, tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort)))
				up := tr.runProgram(NodeXDP, "eth0", packet)
				if up.Verdict != Pass {
					t.Fatalf("XDP says %s", up.Verdict)
				}
				tr.expectUntouched("eth0", up.Packet)
				tr.expectCounters(test.want)
			})
		})
	}
}
