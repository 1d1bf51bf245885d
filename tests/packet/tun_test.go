package packet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// addTun makes a device without Ethernet header until the end of the trial, and returns it and its far end.
func (tr *trial) addTun(addresses Pair) (*Device, *os.File) {
	tr.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	tr.must(err)
	request, err := unix.NewIfreq("tun0")
	tr.must(err)
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	tr.must(unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	file := os.NewFile(uintptr(fd), "tun0")
	tr.Cleanup(func() { file.Close() })
	link, err := netlink.LinkByName("tun0")
	tr.must(err)
	spec := LinkSpec{Name: "tun0", Addresses: addresses}
	tr.must(addAddresses(link, spec))
	tr.must(netlink.LinkSetUp(link))
	device := &Device{LinkSpec: spec, Index: link.Attrs().Index}
	device.Record = maps.Device{
		Edge: maps.EdgeNode, Flags: maps.DeviceNoEthernet,
		Ipv4: maps.AddressOf(addresses.IPv4), Ipv6: maps.AddressOf(addresses.IPv6),
	}
	tr.must(tr.Maps.PutDevice(uint32(device.Index), device.Record))
	return device, file
}

// withoutEthernet returns a frame as it is on a device that has no Ethernet header.
func (f Frame) withoutEthernet() Frame {
	f.SourceMAC, f.DestinationMAC = nil, nil
	return f
}

// expectOnTun waits for a packet that the node sends. Others are passed over.
func (tr *trial) expectOnTun(tun *os.File, want []byte) {
	tr.Helper()
	tr.must(tun.SetReadDeadline(time.Now().Add(patience)))
	var others strings.Builder
	buffer := make([]byte, 65536)
	for {
		length, err := tun.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			tr.Fatalf("not seen:\n%sbut:\n%s", hex.Dump(want), others.String())
		}
		tr.must(err)
		if bytes.Equal(buffer[:length], want) {
			return
		}
		others.WriteString(hex.Dump(buffer[:length]))
	}
}

// A client behind a device without Ethernet header is served all the same: by local and remote backends, and
// refused where there is none.
func TestWireWithoutEthernet(t *testing.T) {
	onWire(t, cases{}, func(tr *trial) {
		addresses := pair("192.0.9.1", "2001:db8:9::1")
		client := pair("192.0.9.7", "2001:db8:9::7")
		device, tun := tr.addTun(addresses)
		tr.attachTo(tr.Programs.NodeIngress, device, ingress)
		tr.attachTo(tr.Programs.NodeEgress, device, egress)
		tr.attachNode("eth0")
		gateway, pod := tr.wire("eth0", false), tr.wire("pod0", false)

		tr.serve(tr.service("web", tr.local(tr.Pod)))
		in := tr.frame("eth0", tr.at(client, 61500), tr.at(tr.LoadBalancer, servicePort))
		_, err := tun.Write(in.withoutEthernet().Bytes())
		tr.must(err)
		translated := in.translated(in.From, tr.at(tr.Pod, targetPort))
		tr.wantOnWire(pod, tr.routed(translated, "pod0", podMAC()))
		answer := translated.answer(podMAC(), tr.Device("pod0").MAC)
		tr.send(pod, answer)
		want := tr.routed(answer.translated(in.To, in.From), "pod0", podMAC()).withoutEthernet()
		tr.expectOnTun(tun, want.Bytes())

		tr.serve(tr.service("web", tr.remote(tr.Remote)))
		in.From = tr.at(client, 61501)
		_, err = tun.Write(in.withoutEthernet().Bytes())
		tr.must(err)
		translated = in.translated(tr.at(tr.NodeEth0, 61501), tr.at(tr.Remote, targetPort))
		tr.wantOnWire(gateway, tr.routed(translated, "eth0", gatewayMAC()))
		answer = translated.answer(gatewayMAC(), tr.Device("eth0").MAC)
		tr.send(gateway, answer)
		want = tr.routed(answer.translated(in.To, in.From), "eth0", nil).withoutEthernet()
		tr.expectOnTun(tun, want.Bytes())

		tr.serveNothing()
		in.From = tr.at(client, 61502)
		_, err = tun.Write(in.withoutEthernet().Bytes())
		tr.must(err)
		refusal := resetOf(in, 0, 1001+uint32(len(in.Payload)), true).withoutEthernet().Bytes()
		if tr.protocol == compile.UDP {
			refusal = tr.errorPacket(in, in.To.Addr(), 0x0303, 0x0104, 0, tr.ipLength(in)&^3)[14:]
		}
		tr.expectOnTun(tun, refusal)
	})
}
