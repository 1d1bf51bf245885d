package packet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Wire is the far end of a device of the node, where frames are put on and taken off.
type Wire struct {
	device string
	file   *os.File
	vnet   bool
}

// vnetHeader is the size of struct virtio_net_hdr, which stands before every frame of a socket that asks for it.
const vnetHeader = 10

// OpenWire opens the far end of a device. With `vnet` frames carry a header that says of checksums left to
// the device, and of how much is linear.
func (n *Node) OpenWire(device string, vnet bool) (*Wire, error) {
	w := &Wire{device: device, vnet: vnet}
	err := within(n.Wire, func() (err error) {
		w.file, err = openPacketSocket(device, vnet)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the far end of %s: %w", device, err)
	}
	return w, nil
}

func openPacketSocket(device string, vnet bool) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), device)
	if vnet {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	index, err := interfaceIndex(fd, device)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	everything := uint16(unix.ETH_P_ALL)
	address := &unix.SockaddrLinklayer{Protocol: everything<<8 | everything>>8, Ifindex: index}
	if err := unix.Bind(fd, address); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// interfaceIndex asks in the network namespace of the socket.
func interfaceIndex(fd int, device string) (int, error) {
	request, err := unix.NewIfreq(device)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, err
	}
	return int(request.Uint32()), nil
}

// Close ends it.
func (w *Wire) Close() error { return w.file.Close() }

// Send puts a frame on the wire; it arrives at the node's device.
func (w *Wire) Send(frame []byte) error {
	if w.vnet {
		frame = append(make([]byte, vnetHeader), frame...)
	}
	return w.write(frame)
}

// SendAs puts a frame on the wire with a header of its own in front.
func (w *Wire) SendAs(header [vnetHeader]byte, frame []byte) error {
	return w.write(append(header[:], frame...))
}

func (w *Wire) write(frame []byte) error {
	if _, err := w.file.Write(frame); err != nil {
		return fmt.Errorf("send by %s: %w", w.device, err)
	}
	return nil
}

// Expect waits for a frame that the node sends. Others are passed over.
func (w *Wire) Expect(want []byte, patience time.Duration) error {
	return w.expect(want, patience, w.complete)
}

// ExpectPartial waits for a frame whose checksum is left to the device, as it is.
func (w *Wire) ExpectPartial(want []byte, patience time.Duration) error {
	return w.expect(want, patience, func(received []byte) []byte {
		if len(received) < vnetHeader || received[0]&1 == 0 {
			return nil
		}
		return received[vnetHeader:]
	})
}

func (w *Wire) expect(want []byte, patience time.Duration, read func(received []byte) []byte) error {
	if err := w.file.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var others strings.Builder
	buffer := make([]byte, 65536)
	for {
		length, err := w.file.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("not seen on %s within %v:\n%sbut:\n%s", w.device, patience, hex.Dump(want), others.String())
		}
		if err != nil {
			return fmt.Errorf("receive on %s: %w", w.device, err)
		}
		frame := read(buffer[:length])
		if bytes.Equal(frame, want) {
			return nil
		}
		others.WriteString(hex.Dump(frame))
	}
}

// complete returns the frame with the checksum computed that was left to the device.
func (w *Wire) complete(received []byte) []byte {
	if !w.vnet || len(received) < vnetHeader {
		return received
	}
	header, frame := received[:vnetHeader], received[vnetHeader:]
	if header[0]&1 == 0 { // VIRTIO_NET_HDR_F_NEEDS_CSUM
		return frame
	}
	start, offset := int(header[6])|int(header[7])<<8, int(header[8])|int(header[9])<<8
	sum := internetChecksum(frame[start:])
	frame[start+offset], frame[start+offset+1] = byte(sum>>8), byte(sum)
	return frame
}

// Attach runs a tc program on what arrives at, or leaves by, a device, until it is detached.
func (w *World) Attach(program *ebpf.Program, device *Device, attach ebpf.AttachType) (detach func() error, err error) {
	attached, err := link.AttachTCX(link.TCXOptions{Program: program, Interface: device.Index, Attach: attach})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return w.attachFilter(program, device, attach)
	}
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", device.Name, err)
	}
	return attached.Close, nil
}

// attachFilter does it where the kernel has no tcx.
func (w *World) attachFilter(program *ebpf.Program, device *Device, attach ebpf.AttachType) (detach func() error, err error) {
	parent := uint32(netlink.HANDLE_MIN_INGRESS)
	if attach == ebpf.AttachTCXEgress {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: device.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("add clsact to %s: %w", device.Name, err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: device.Index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          program.FD(), Name: "weir", DirectAction: true,
	}
	if err := netlink.FilterAdd(filter); err != nil {
		return nil, fmt.Errorf("add a filter to %s: %w", device.Name, err)
	}
	return func() error { return netlink.FilterDel(filter) }, nil
}
