package packet

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
)

// A fuzz input is a history: packets, each with a byte that says which program meets it on which device, and
// two that say how long it is.

// fuzzPlaces are what that byte chooses from.
var fuzzPlaces = []struct {
	program Program
	device  string
}{
	{NodeXDP, "eth0"},
	{NodeIngress, "eth0"},
	{NodeEgress, "eth0"},
	{PodIngress, "pod0"},
	{PodEgress, "pod0"},
	{NodeXDP, "eth1"},
	{NodeIngress, "br0p"},
	{PodIngress, "pod2"},
}

const (
	fuzzXDP = iota
	fuzzIngress
	fuzzEgress
	fuzzPodIngress
	fuzzPodEgress
)

// The most packets of a history, and bytes of a packet.
const (
	fuzzPackets = 32
	fuzzBytes   = 2048
)

// story is a history as it is told.
type story []byte

func (s *story) add(place byte, packet []byte) {
	*s = append(*s, place)
	*s = binary.BigEndian.AppendUint16(*s, uint16(len(packet)))
	*s = append(*s, packet...)
}

// next returns the first packet and what comes behind it.
func (s story) next(node *Node) (arrival Arrival, rest story, ok bool) {
	if len(s) < 3 {
		return Arrival{}, nil, false
	}
	place := fuzzPlaces[int(s[0])%len(fuzzPlaces)]
	length := min(int(binary.BigEndian.Uint16(s[1:])), len(s)-3, fuzzBytes)
	arrival = Arrival{place.program, node.Device(place.device), s[3:][:length]}
	return arrival, s[3+length:], length >= shortestPacket
}

// FuzzPackets holds the programs against the model on any history of packets. What the programs pick by chance
// makes inputs look interesting that are not, so let none be made smaller for that:
//
//	go test -fuzz FuzzPackets -fuzzminimizetime 1x ./tests/packet
func FuzzPackets(f *testing.F) {
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP} {
			for _, told := range seedStories(family, protocol) {
				f.Add([]byte(told))
			}
		}
	}
	world, model := randomWorld(f)
	known := false // what the maps hold is what the model says
	f.Fuzz(func(t *testing.T, told []byte) {
		defer pinToNthCPU(t, os.Getpid())() // workers are processes that follow each other
		if !known {
			beginRound(t, world, model)
		} else if err := world.Forget(model); err != nil {
			t.Fatal(err)
		}
		known = false
		rest := story(told)
		for range fuzzPackets {
			arrival, behind, ok := rest.next(world.Node)
			if !ok {
				break
			}
			if _, err := runArrival(world, model, arrival); err != nil {
				t.Fatal(err)
			}
			rest = behind
		}
		if err := model.CheckState(world); err != nil {
			t.Fatal(err)
		}
		known = true
	})
}

// seedStories are what the tests tell: flows to local and remote backends, from pods and to themselves, foreign
// ones, refusals, errors.
func seedStories(family compile.Family, protocol compile.Protocol) []story {
	hosts := NewHosts()
	at := func(host Pair, port uint16) netip.AddrPort { return host.Port(family, port) }
	frame := func(from, to netip.AddrPort, device byte) Frame {
		f := Frame{SourceMAC: gatewayMAC(), DestinationMAC: mac(device), From: from, To: to, Protocol: protocol, TTL: 64}
		f.TCP = TCPFields{SYN: true, Sequence: 1000, Window: 1000}
		f.Payload = []byte("some payload for the checksum to cover")
		return f
	}
	talk := func(there, back byte, in, translated Frame, device, answerDevice byte) story {
		var s story
		s.add(there, in.Bytes())
		s.add(back, translated.answer(gatewayMAC(), mac(answerDevice)).Bytes())
		s.add(there, in.later().Bytes())
		last := in.later()
		last.TCP.FIN = true
		s.add(there, last.Bytes())
		s.add(there, in.Bytes())
		return s
	}
	local := frame(at(hosts.Client, 61500), at(hosts.LoadBalancer, servicePortBase+3), 1)
	remote := frame(at(hosts.Client, 61500), at(hosts.NodeEth0, nodePortBase+servicePortBase+2), 1)
	hairpin := frame(at(hosts.Pod, 61500), at(hosts.ClusterIP, servicePortBase+3), 0x10)
	refused := frame(at(hosts.Client, 1), at(hosts.External, servicePortBase+14), 1)
	var foreign, refusal, quoting story
	out := frame(at(hosts.NodeEth0, nodePortBase+servicePortBase), at(hosts.Remote, 443), 1)
	foreign.add(fuzzEgress, out.Bytes())
	foreign.add(fuzzXDP, out.answer(gatewayMAC(), mac(1)).Bytes())
	about := remote.translated(at(hosts.NodeEth0, 61500), at(hosts.Remote, 8002))
	tooBig := ErrorFrame{
		SourceMAC: gatewayMAC(), DestinationMAC: mac(1), From: hosts.Gateway.Of(family), To: about.From.Addr(),
		Message: TooBig, Rest: 1400, TTL: 64, Quote: quoteOf(about, 80),
	}
	quoting.add(fuzzIngress, remote.Bytes())
	quoting.add(fuzzIngress, tooBig.Bytes())
	tooBig.Message = Redirected
	quoting.add(fuzzIngress, tooBig.Bytes())
	strange := frame(at(hosts.Pod, 61501), at(hosts.ClusterIP, 1), 0x10)
	refusal.add(fuzzXDP, refused.Bytes())
	refusal.add(fuzzPodIngress, hairpin.Bytes())
	refusal.add(fuzzPodIngress, strange.Bytes())
	return []story{
		talk(fuzzXDP, fuzzEgress, local, local.translated(local.From, at(hosts.Pod, 8003)), 1, 1),
		talk(fuzzXDP, fuzzXDP, remote, remote.translated(at(hosts.NodeEth0, 61500), at(hosts.Remote, 8002)), 1, 1),
		talk(fuzzIngress, fuzzIngress, remote, remote.translated(at(hosts.NodeEth0, 61500), at(hosts.Remote, 8002)), 1, 1),
		talk(fuzzPodIngress, fuzzPodIngress, hairpin,
			hairpin.translated(at(hosts.PodGateway, 61500), at(hosts.Pod, 8003)), 0x10, 0x10),
		foreign, refusal, quoting,
	}
}
