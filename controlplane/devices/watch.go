package devices

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watchBuffer is how many bytes of notifications may wait for us.
const watchBuffer = 4 << 20

// subscribe returns a socket that hears of links, addresses, default routes, qdiscs and filters of the calling thread's
// network namespace.
func subscribe() (*nl.NetlinkSocket, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_TC, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to device changes: %w", err)
	}
	if err := socket.SetReceiveBufferSize(watchBuffer, true); err != nil {
		socket.Close()
		return nil, fmt.Errorf("set the buffer for device changes: %w", err)
	}
	filter := defaultRoutesOnly()
	program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(socket.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program); err != nil {
		socket.Close()
		return nil, fmt.Errorf("filter device changes: %w", err)
	}
	return socket, nil
}

// notification is what the socket has told, or that it can tell no more.
type notification struct {
	messages []syscall.NetlinkMessage
	err      error
}

// listener hands on what a subscription tells.
type listener struct {
	socket *nl.NetlinkSocket
	heard  chan notification // one with an error is the last
	done   chan struct{}
}

// listen subscribes and begins to listen.
func listen() (*listener, error) {
	socket, err := subscribe()
	if err != nil {
		return nil, err
	}
	l := &listener{socket: socket, heard: make(chan notification, 1), done: make(chan struct{})}
	go l.run()
	return l, nil
}

// run receives until the socket fails, or is closed.
func (l *listener) run() {
	for {
		messages, _, err := l.socket.Receive()
		select {
		case <-l.done:
			return
		case l.heard <- notification{messages: messages, err: err}:
		}
		if err != nil {
			return
		}
	}
}

// close ends the subscription.
func (l *listener) close() {
	close(l.done)
	l.socket.Close()
}

// defaultRoutesOnly is a socket filter that lets notifications of routes through only where they are of default
// routes: a node may see thousands of others come and go.
func defaultRoutesOnly() []unix.SockFilter {
	const (
		typeOffset   = 4                       // of nlmsghdr.nlmsg_type
		lengthOffset = unix.SizeofNlMsghdr + 1 // of rtmsg.rtm_dst_len
		all          = 1 << 18
	)
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: typeOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wireOrder(unix.RTM_NEWROUTE), Jt: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: wireOrder(unix.RTM_DELROUTE), Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: all},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: lengthOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: all},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// wireOrder returns a number of the host as a socket filter loads it: socket filters read network byte order.
func wireOrder(number uint16) uint32 {
	var bytes [2]byte
	binary.NativeEndian.PutUint16(bytes[:], number)
	return uint32(binary.BigEndian.Uint16(bytes[:]))
}

// parseLink reads a message about a link. It returns nil for those that are about something else of it: a bridge's
// port, wireless events.
func parseLink(message syscall.NetlinkMessage) (*device, error) {
	if len(message.Data) < unix.SizeofIfInfomsg || message.Data[0] == unix.AF_BRIDGE {
		return nil, nil
	}
	link, err := netlink.LinkDeserialize(nil, message.Data)
	if err != nil {
		return nil, fmt.Errorf("read about a device: %w", err)
	}
	attrs := link.Attrs()
	if attrs.Name == "" {
		return nil, nil
	}
	d := &device{
		index: attrs.Index, name: attrs.Name, altNames: attrs.AltNames, kind: link.Type(),
		hardware: nl.DeserializeIfInfomsg(message.Data).Type,
		up:       attrs.RawFlags&unix.IFF_UP != 0, loopback: attrs.RawFlags&unix.IFF_LOOPBACK != 0, mtu: attrs.MTU,
		master: attrs.MasterIndex, lower: attrs.ParentIndex, namespace: attrs.NetNsID,
	}
	if d.kind == "device" {
		d.kind = ""
	}
	if len(attrs.HardwareAddr) == len(d.mac) {
		d.mac = [6]byte(attrs.HardwareAddr)
	}
	return d, nil
}

// parseAddress reads a message about an address of a device.
func parseAddress(data []byte) (ifindex int, a address, err error) {
	if len(data) < unix.SizeofIfAddrmsg {
		return 0, address{}, nil
	}
	message := nl.DeserializeIfAddrmsg(data)
	attributes, err := nl.ParseRouteAttr(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, address{}, fmt.Errorf("read about an address: %w", err)
	}
	a.flags = uint32(message.Flags)
	var local, peer netip.Addr
	for _, attribute := range attributes {
		switch attribute.Attr.Type {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attribute.Value)
		case unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(attribute.Value)
		case unix.IFA_FLAGS:
			if len(attribute.Value) == 4 {
				a.flags = binary.NativeEndian.Uint32(attribute.Value)
			}
		}
	}
	// IFA_ADDRESS is the other end of a point-to-point link where there is IFA_LOCAL.
	if !local.IsValid() {
		local = peer
	}
	a.prefix = netip.PrefixFrom(local, int(message.Prefixlen))
	return int(message.Index), a, nil
}

// parseFilter reads which device a message about a qdisc or a filter is of.
func parseFilter(data []byte) (ifindex int) {
	if len(data) < nl.SizeofTcMsg {
		return 0
	}
	return int(nl.DeserializeTcMsg(data).Ifindex)
}
