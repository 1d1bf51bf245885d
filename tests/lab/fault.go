package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/loader"
)

// Fault is a way in which a host does not answer as it should. Neighbours are resolved and links up in each.
type Fault string

// The faults of a host. Connections that are there go on, except on a dead one.
const (
	Silent      Fault = "silent"      // what would open connections to its servers vanishes: SYNs, datagrams
	Refuses     Fault = "refuses"     // TCP is reset, UDP refused
	Unreachable Fault = "unreachable" // ICMP says that there is no port, of TCP too
	Late        Fault = "late"        // a SYN is seen LateBy after it came
	Dead        Fault = "dead"        // nothing comes in and nothing goes out, on any device
)

// LateBy is how long a late host takes to see a SYN: longer than a client waits before it sends the next one.
const LateBy = 1500 * time.Millisecond

// lateMAC is the source of frames that carry SYNs whose time has come, also in faultRules.
var lateMAC = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x1a}

// faultRules are the netfilter rules of each fault, for one DEVICE. None follows connections.
var faultRules = map[Fault]string{
	Silent: `table netdev fault {
	chain entry {
		type filter hook ingress device DEVICE priority 0; policy accept;
		tcp flags & (syn | ack) == syn drop
		udp dport { 8080, 9000 } drop
	}
}`,
	Refuses: `table inet fault {
	chain entry {
		type filter hook input priority filter; policy accept;
		tcp dport { 8080, 9000 } tcp flags & (syn | ack) == syn reject with tcp reset
		udp dport { 8080, 9000 } reject
	}
}`,
	Unreachable: `table inet fault {
	chain entry {
		type filter hook input priority filter; policy accept;
		tcp dport { 8080, 9000 } tcp flags & (syn | ack) == syn reject with icmpx port-unreachable
		udp dport { 8080, 9000 } reject with icmpx port-unreachable
	}
}`,
	Late: `table netdev fault {
	chain entry {
		type filter hook ingress device DEVICE priority 0; policy accept;
		ether saddr != 02:00:00:00:00:1a tcp flags & (syn | ack) == syn drop
	}
}`,
	Dead: `table netdev faultDEVICE {
	chain entry {
		type filter hook ingress device DEVICE priority 0; policy drop;
	}
	chain exit {
		type filter hook egress device DEVICE priority 0; policy drop;
	}
}`,
}

// Fail makes the host fail until recovers is called. It has one fault at a time.
func (h *Host) Fail(fault Fault) (recovers func() error, err error) {
	devices := []string{"eth0"}
	if fault == Dead {
		if devices, err = h.devices(); err != nil {
			return nil, err
		}
	}
	var rules strings.Builder
	for _, device := range devices {
		rules.WriteString(strings.ReplaceAll(faultRules[fault], "DEVICE", device) + "\n")
	}
	if _, err := h.Run(rules.String(), "nft", "-f", "-"); err != nil {
		return nil, err
	}
	if fault != Late {
		return h.endFault, nil
	}
	stop, err := h.delaySYNs()
	if err != nil {
		return nil, errors.Join(err, h.endFault())
	}
	return func() error { return errors.Join(h.endFault(), stop()) }, nil
}

// endFault removes the rules of faults.
func (h *Host) endFault() error {
	tables, err := h.Run("", "nft", "list", "tables")
	if err != nil {
		return err
	}
	for table := range strings.Lines(tables) {
		if fields := strings.Fields(table); len(fields) == 3 && strings.HasPrefix(fields[2], "fault") {
			_, removed := h.Run("", "nft", "delete", "table", fields[1], fields[2])
			err = errors.Join(err, removed)
		}
	}
	return err
}

// devices lists the names of the host's devices to others.
func (h *Host) devices() ([]string, error) {
	links, err := loader.DumpWhole(h.links.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links of %s: %w", h.Name, err)
	}
	var names []string
	for _, link := range links {
		if link.Attrs().Flags&net.FlagLoopback == 0 {
			names = append(names, link.Attrs().Name)
		}
	}
	return names, nil
}

// delaySYNs sends every SYN that comes in by a pod's device to it again, LateBy later, from its node's side.
func (h *Host) delaySYNs() (stop func() error, err error) {
	if h.node == nil || h.node == h {
		return nil, fmt.Errorf("%s is no pod: only pods answer late", h.Role)
	}
	entry, err := h.packetSocket("eth0", unix.ETH_P_ALL)
	if err != nil {
		return nil, err
	}
	again, err := h.node.packetSocket(hostSide+h.Role, 0)
	if err != nil {
		return nil, errors.Join(err, entry.Close())
	}
	go resendSYNs(entry, again)
	return func() error { return errors.Join(entry.Close(), again.Close()) }, nil
}

// packetSocket opens a socket for whole frames of a device.
func (h *Host) packetSocket(device string, protocol uint16) (*os.File, error) {
	link, err := h.Link(device)
	if err != nil {
		return nil, err
	}
	var socket *os.File
	err = h.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		address := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: link.Attrs().Index}
		if err := unix.Bind(fd, address); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		socket = os.NewFile(uintptr(fd), device)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s in %s: %w", device, h.Name, err)
	}
	return socket, nil
}

// resendSYNs copies SYNs, each after its time, until the sockets are closed.
func resendSYNs(from, to *os.File) {
	frame := make([]byte, 2048)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		late, ok := lateSYN(frame[:n])
		if !ok {
			continue
		}
		time.AfterFunc(LateBy, func() {
			// Where the socket is closed by now, the host has recovered, and the client sends another SYN.
			_, _ = to.Write(late)
		})
	}
}

// lateSYN returns the frame of a SYN as it is to be sent again. Its checksum may have been left to a device.
func lateSYN(frame []byte) ([]byte, bool) {
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ethernet, _ := packet.LinkLayer().(*layers.Ethernet)
	tcp, _ := packet.TransportLayer().(*layers.TCP)
	if ethernet == nil || tcp == nil || !tcp.SYN || tcp.ACK || bytes.Equal(ethernet.SrcMAC, lateMAC) {
		return nil, false
	}
	ethernet.SrcMAC = lateMAC
	if err := tcp.SetNetworkLayerForChecksum(packet.NetworkLayer()); err != nil {
		return nil, false
	}
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializePacket(buffer, options, packet); err != nil {
		return nil, false
	}
	return buffer.Bytes(), true
}
