package packet

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// What a test run cannot show is tested on devices: where a redirect goes, checksums that are left to the device,
// headers that are not linear, tags that the kernel has taken off, frames too short for a test run.

// patience is how long a frame may take from one end of the node to the other.
const patience = 5 * time.Second

// The two sides of a device.
const (
	ingress = ebpf.AttachTCXIngress
	egress  = ebpf.AttachTCXEgress
)

func (tr *trial) attach(program *ebpf.Program, device string, direction ebpf.AttachType) {
	tr.Helper()
	tr.attachTo(program, tr.Device(device), direction)
}

func (tr *trial) attachTo(program *ebpf.Program, device *Device, direction ebpf.AttachType) {
	tr.Helper()
	detach, err := tr.Attach(program, device, direction)
	if err != nil {
		tr.Fatal(err)
	}
	tr.Cleanup(func() {
		if err := detach(); err != nil {
			tr.Error(err)
		}
	})
}

// attachNode puts the node edge's programs on devices, as the agent does.
func (tr *trial) attachNode(devices ...string) {
	tr.Helper()
	for _, device := range devices {
		tr.attach(tr.Programs.NodeIngress, device, ingress)
		tr.attach(tr.Programs.NodeEgress, device, egress)
	}
}

// attachPod puts the pod edge's programs on a device.
func (tr *trial) attachPod(device string) {
	tr.Helper()
	tr.attach(tr.Programs.PodIngress, device, ingress)
	tr.attach(tr.Programs.PodEgress, device, egress)
}

func (tr *trial) wire(device string, vnet bool) *Wire {
	tr.Helper()
	wire, err := tr.OpenWire(device, vnet)
	if err != nil {
		tr.Fatal(err)
	}
	tr.Cleanup(func() { wire.Close() })
	return wire
}

func (tr *trial) send(wire *Wire, frame Frame) {
	tr.Helper()
	if err := wire.Send(frame.Bytes()); err != nil {
		tr.Fatal(err)
	}
}

func (tr *trial) wantOnWire(wire *Wire, frame Frame) {
	tr.Helper()
	if err := wire.Expect(frame.Bytes(), patience); err != nil {
		tr.Fatal(err)
	}
}

// onWire runs a test of attached programs, of which the model sees nothing.
func onWire(t *testing.T, c cases, test func(tr *trial)) {
	t.Helper()
	c.programs = []Program{NodeIngress}
	forEach(t, c, func(tr *trial) {
		defer tr.begin() // so that flows are as in the model, which are none
		test(tr)
	})
}

// routed returns the frame as the stack forwards it: out of a device, to a neighbour, one hop older.
func (tr *trial) routed(f Frame, device string, neighbour []byte) Frame {
	f.SourceMAC, f.DestinationMAC = tr.Device(device).MAC, neighbour
	f.TTL--
	return f
}

// A flow to a remote backend leaves by the device that the route says, with the MACs of that link, and its
// answers go back to where the client came from.
func TestWireForward(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.remote(tr.RemoteSecond)))
		tr.attachNode("eth0", "eth1")
		client, backend := tr.wire("eth0", false), tr.wire("eth1", false)
		in := tr.frame("eth0", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort))
		tr.send(client, in)
		translated := in.translated(tr.at(tr.NodeEth1, 61500), tr.at(tr.RemoteSecond, targetPort))
		tr.wantOnWire(backend, tr.routed(translated, "eth1", secondGatewayMAC()))

		answer := translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC)
		tr.send(backend, answer)
		tr.wantOnWire(client, tr.routed(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
	})
}

// toPodOnWire has a packet of a client reach the pod, and returns it and what the pod answers.
func (tr *trial) toPodOnWire(from Pair) (client, pod *Wire, in, answer Frame) {
	tr.Helper()
	client, pod = tr.wire("eth0", false), tr.wire("pod0", false)
	in = tr.frame("eth0", tr.at(from, clientPort), tr.at(tr.LoadBalancer, servicePort))
	tr.send(client, in)
	translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
	tr.wantOnWire(pod, tr.routed(translated, "pod0", podMAC()))
	return client, pod, in, translated.answer(podMAC(), tr.Device("pod0").MAC)
}

// A flow to a local backend goes through the stack, and so do its answers.
func TestWireLocal(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.attachNode("eth0")
		client, pod, in, answer := tr.toPodOnWire(tr.Client)
		tr.send(pod, answer)
		tr.wantOnWire(client, tr.routed(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
	})
}

// An answer leaves by the device that the client came by, where a route leads to the client there.
func TestWireAnswerByArrivalDevice(t *testing.T) {
	onWire(t, cases{families: []compile.Family{compile.IPv4}}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.attachNode("eth0", "eth1")
		// The best route to this client is eth1's link; it came by eth0, where the default route is.
		client, pod, in, answer := tr.toPodOnWire(tr.SecondClient)
		tr.send(pod, answer)
		tr.wantOnWire(client, tr.routed(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
	})
}

// Where no route leads to the client by the device it came by, the answer goes to the router that is there: by a table
// that rules lead to, or by a default route that is not the best.
func TestWireAnswerByRouter(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.attachNode("eth0", "eth1", "eth3")
		client := tr.wire("eth3", false)
		in := tr.frame("eth3", tr.at(tr.Client, 61500), tr.at(tr.LoadBalancer, servicePort))

		tr.serve(tr.service("web", tr.local(tr.Pod)))
		pod := tr.wire("pod0", false)
		tr.send(client, in)
		translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
		tr.wantOnWire(pod, tr.routed(translated, "pod0", podMAC()))
		answer := translated.answer(podMAC(), tr.Device("pod0").MAC)
		tr.send(pod, answer)
		tr.wantOnWire(client, tr.routed(answer.translated(in.To, in.From), "eth3", secondGatewayMAC()))

		tr.serve(tr.service("web", tr.remote(tr.RemoteSecond)))
		backend := tr.wire("eth1", false)
		in.From = tr.at(tr.Client, 61501)
		tr.send(client, in)
		translated = tr.routed(in.translated(tr.at(tr.NodeEth1, 61501), tr.at(tr.RemoteSecond, targetPort)), "eth1", secondGatewayMAC())
		tr.wantOnWire(backend, translated)
		answer = translated.answer(secondGatewayMAC(), tr.Device("eth1").MAC)
		tr.send(backend, answer)
		tr.wantOnWire(client, tr.routed(answer.translated(in.To, in.From), "eth3", secondGatewayMAC()))
	})
}

// Where no route leads to the client by the device it came by, and no router is known there, the answer goes where the
// routes say.
func TestWireAnswerWithoutRouteByArrivalDevice(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.attachNode("eth0", "eth1")
		client, other, pod := tr.wire("eth1", false), tr.wire("eth0", false), tr.wire("pod0", false)
		in := tr.frame("eth1", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.send(client, in)
		translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
		tr.wantOnWire(pod, tr.routed(translated, "pod0", podMAC()))
		answer := translated.answer(podMAC(), tr.Device("pod0").MAC)
		tr.send(pod, answer)
		tr.wantOnWire(other, tr.routed(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
	})
}

// A refusal goes back the way the packet came, on both edges.
func TestWireRefusal(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.serveNothing()
		tr.attachNode("eth0")
		tr.attachPod("pod0")
		for device, from := range map[string]Pair{"eth0": tr.Client, "pod0": tr.Pod} {
			wire := tr.wire(device, false)
			in := tr.frame(device, tr.at(from, clientPort), tr.at(tr.LoadBalancer, servicePort))
			tr.send(wire, in)
			var want []byte
			if tr.protocol != compile.UDP {
				reset := resetOf(in, 0, 1001+uint32(len(in.Payload)), true).Bytes()
				want = reset[:14+tr.ipLength(resetOf(in, 0, 1, true))]
			} else {
				want = tr.errorPacket(in, in.To.Addr(), 0x0303, 0x0104, 0, tr.ipLength(in)&^3)
			}
			if err := wire.Expect(want, patience); err != nil {
				tr.Error(err)
			}
		}
	})
}

// A pod reaches itself: its packet comes back from the node's address, and its answer from the frontend's.
func TestWireHairpin(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.attachPod("pod0")
		pod := tr.wire("pod0", false)
		in := tr.podFrame("pod0", tr.at(tr.Pod, 61500), tr.at(tr.ClusterIP, servicePort))
		tr.send(pod, in)
		there := tr.routed(in.translated(tr.at(tr.PodGateway, 61500), tr.at(tr.Pod, targetPort)), "pod0", podMAC())
		tr.wantOnWire(pod, there)
		answer := there.answer(podMAC(), tr.Device("pod0").MAC)
		tr.send(pod, answer)
		tr.wantOnWire(pod, tr.routed(answer.translated(in.To, in.From), "pod0", podMAC()))
	})
}

// partial returns the header that leaves a transport checksum to the device, and the frame with the sum of the
// pseudo header in its place, as a socket of a veth sends it.
func (tr *trial) partial(f Frame) (header [vnetHeader]byte, frame []byte) {
	tr.Helper()
	frame = f.Bytes()
	p, why := parse(frame)
	if why != understood {
		tr.Fatal("the frame is not one that can be read")
	}
	field := p.checksum(frame)
	addresses := p.addresses(frame)
	half := len(addresses) / 2
	pseudo := pseudoHeader(addresses[:half], addresses[half:], p.protocol, p.ip+p.length-p.transport)
	binary.BigEndian.PutUint16(field, internetSum(pseudo))
	header[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	offset := 16
	if !p.tcp() {
		offset = 6
	}
	header[6], header[7] = byte(p.transport), byte(p.transport>>8)
	header[8] = byte(offset)
	return header, frame
}

// Packets whose checksum is left to the device are translated so that the device completes it rightly: pod to
// backend, backend to client.
func TestWirePartialChecksum(t *testing.T) {
	onWire(t, cases{protocols: withSockets()}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.OtherPod)))
		tr.attachPod("pod0")
		tr.attachNode("eth0")
		client, pod, backend := tr.wire("eth0", true), tr.wire("pod0", true), tr.wire("pod1", true)

		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		header, frame := tr.partial(in)
		tr.must(pod.SendAs(header, frame))
		translated := in.translated(in.From, tr.at(tr.OtherPod, targetPort))
		tr.wantOnWire(backend, tr.routed(translated, "pod1", podMAC()))
		answer := translated.answer(podMAC(), tr.Device("pod1").MAC)
		header, frame = tr.partial(answer)
		tr.must(backend.SendAs(header, frame))
		tr.wantOnWire(pod, tr.routed(answer.translated(in.To, in.From), "pod0", podMAC()))

		in = tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		header, frame = tr.partial(in)
		tr.must(client.SendAs(header, frame))
		translated = in.translated(in.From, tr.at(tr.OtherPod, targetPort))
		tr.wantOnWire(backend, tr.routed(translated, "pod1", podMAC()))
		answer = translated.answer(podMAC(), tr.Device("pod1").MAC)
		header, frame = tr.partial(answer)
		tr.must(backend.SendAs(header, frame))
		tr.wantOnWire(client, tr.routed(answer.translated(in.To, in.From), "eth0", gatewayMAC()))
	})
}

func (tr *trial) must(err error) {
	tr.Helper()
	if err != nil {
		tr.Fatal(err)
	}
}

// A refusal of a packet whose checksum was left to the device has a right checksum, and so has the quote.
func TestWireRefusalOfPartialChecksum(t *testing.T) {
	onWire(t, cases{protocols: withSockets()}, func(tr *trial) {
		tr.serveNothing()
		tr.attachPod("pod0")
		pod := tr.wire("pod0", true)
		in := tr.podFrame("pod0", tr.at(tr.Pod, clientPort), tr.at(tr.ClusterIP, servicePort))
		header, frame := tr.partial(in)
		tr.must(pod.SendAs(header, frame))
		want := tr.errorPacket(in, in.To.Addr(), 0x0303, 0x0104, 0, tr.ipLength(in)&^3)
		if tr.protocol == compile.TCP {
			reset := resetOf(in, 0, 1001+uint32(len(in.Payload)), true)
			want = reset.Bytes()[:14+tr.ipLength(reset)]
		}
		if err := pod.Expect(want, patience); err != nil {
			tr.Error(err)
		}
	})
}

// Headers that are not in the linear part of a socket buffer are read all the same. A large link has such.
func TestWireHeadersNotLinear(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.BigPod)))
		tr.attachNode("big0")
		client, pod := tr.wire("big0", true), tr.wire("big1", true)
		in := tr.frame("big0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		in.Payload = make([]byte, 6000)
		for i := range in.Payload {
			in.Payload[i] = byte(i * 7)
		}
		header := [vnetHeader]byte{2: 14} // only the Ethernet header is linear
		tr.must(client.SendAs(header, in.Bytes()))
		translated := in.translated(in.From, tr.at(tr.BigPod, targetPort))
		tr.wantOnWire(pod, tr.routed(translated, "big1", podMAC()))
	})
}

// The kernel takes the tag off a frame before tc: it is its VLAN device's, and left alone before.
func TestWireVLAN(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.attachNode("eth0")
		client, pod := tr.wire("eth0", false), tr.wire("pod0", false)
		tagged := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tagged.VLANs = []uint16{10}
		tr.send(client, tagged)
		in := tr.frame("eth0", tr.at(tr.OtherClient, clientPort), tr.at(tr.LoadBalancer, servicePort))
		tr.send(client, in)
		translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
		tr.wantOnWire(pod, tr.routed(translated, "pod0", podMAC()))
		tr.expectCounters(maps.PacketCounters{FlowNew: 1})
	})
}

// A packet cut off at any byte is left alone and counted, on the wire too, where test runs do not reach.
func TestWireTruncated(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		tr.serve(tr.service("web", tr.local(tr.Pod)))
		tr.attachNode("eth0")
		client := tr.wire("eth0", false)
		in := tr.frame("eth0", tr.at(tr.Client, clientPort), tr.at(tr.LoadBalancer, servicePort))
		whole := in.Bytes()
		p, _ := parse(whole)
		sent := uint64(0)
		for length := shortestPacket + 1; length < p.ip+p.length; length++ {
			tr.must(client.Send(whole[:length]))
			sent++
		}
		deadline := time.Now().Add(patience)
		for {
			counters, err := tr.Counters()
			tr.must(err)
			if counters == (maps.PacketCounters{PassMalformed: sent}) {
				return
			}
			if time.Now().After(deadline) {
				tr.Fatalf("of %d packets the counters are %+v", sent, counters)
			}
			time.Sleep(time.Millisecond)
		}
	})
}
