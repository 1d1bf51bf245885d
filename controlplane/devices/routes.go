package devices

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// routeTable is asked for the next hop toward each backend, of which there may be a hundred thousand: it keeps one
// socket and one buffer, and makes no garbage.
type routeTable struct {
	socket   int
	sequence uint32
	buffer   [4096]byte
}

// Of messages about routes (linux/rtnetlink.h).
const (
	sizeofHeader    = unix.SizeofNlMsghdr
	sizeofRoute     = unix.SizeofRtMsg
	sizeofAttribute = unix.SizeofRtAttr
)

// openRoutes opens what asks for the routes of the calling thread's network namespace.
func openRoutes() (*routeTable, error) {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &routeTable{socket: socket}, nil
}

func (r *routeTable) close() { unix.Close(r.socket) }

// toward returns the next hop toward an address, as the kernel has it now; none where there is no route.
func (r *routeTable) toward(to netip.Addr) (hop nextHop, found bool, err error) {
	r.sequence++
	if err := unix.Sendto(r.socket, r.question(to), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nextHop{}, false, fmt.Errorf("ask for the route to %s: %w", to, err)
	}
	for {
		size, _, err := unix.Recvfrom(r.socket, r.buffer[:], 0)
		if err != nil {
			return nextHop{}, false, fmt.Errorf("ask for the route to %s: %w", to, err)
		}
		answer := r.buffer[:size]
		if size < sizeofHeader || binary.NativeEndian.Uint32(answer[8:]) != r.sequence {
			continue
		}
		if binary.NativeEndian.Uint16(answer[4:]) != unix.RTM_NEWROUTE || size < sizeofHeader+sizeofRoute {
			return nextHop{}, false, nil
		}
		hop, found = hopOf(answer[sizeofHeader:], to)
		return hop, found, nil
	}
}

// question is an RTM_GETROUTE for an address, in the buffer.
func (r *routeTable) question(to netip.Addr) []byte {
	family, address := byte(unix.AF_INET), to.AsSlice()
	if to.Is6() {
		family = unix.AF_INET6
	}
	size := sizeofHeader + sizeofRoute + sizeofAttribute + len(address)
	question := r.buffer[:size]
	clear(question)
	binary.NativeEndian.PutUint32(question, uint32(size))
	binary.NativeEndian.PutUint16(question[4:], unix.RTM_GETROUTE)
	binary.NativeEndian.PutUint16(question[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(question[8:], r.sequence)
	route := question[sizeofHeader:]
	route[0], route[1] = family, byte(to.BitLen())
	attribute := route[sizeofRoute:]
	binary.NativeEndian.PutUint16(attribute, uint16(sizeofAttribute+len(address)))
	binary.NativeEndian.PutUint16(attribute[2:], unix.RTA_DST)
	copy(attribute[sizeofAttribute:], address)
	return question
}

// hopOf returns the next hop of a route to an address: the gateway, or the address itself.
func hopOf(route []byte, to netip.Addr) (hop nextHop, found bool) {
	hop.addr = weirmaps.AddressOf(to)
	for attribute, value := range attributes(route) {
		switch attribute {
		case unix.RTA_OIF:
			hop.ifindex = int32(binary.NativeEndian.Uint32(value))
		case unix.RTA_VIA: // struct rtvia: its family, then the address
			value = value[2:]
			fallthrough
		case unix.RTA_GATEWAY:
			if gateway, ok := netip.AddrFromSlice(value); ok && !gateway.IsUnspecified() {
				hop.addr = weirmaps.AddressOf(gateway)
			}
		}
	}
	return hop, hop.ifindex != 0
}

// attributes walks those of a message about a route that are long enough to say anything.
func attributes(route []byte) func(yield func(attribute uint16, value []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		rest := route[sizeofRoute:]
		for len(rest) >= sizeofAttribute {
			length := int(binary.NativeEndian.Uint16(rest))
			if length < sizeofAttribute || length > len(rest) {
				return
			}
			value := rest[sizeofAttribute:length]
			if len(value) >= 4 && !yield(binary.NativeEndian.Uint16(rest[2:]), value) {
				return
			}
			rest = rest[min((length+3)&^3, len(rest)):]
		}
	}
}

// listenRoutes subscribes to changes of all routes and rules of the calling thread's network namespace.
func listenRoutes() (*nl.NetlinkSocket, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to routes: %w", err)
	}
	return socket, nil
}

// prefixOf returns what a message about a route is about; false: it is about a rule, or cannot be read, and may be about
// anything.
func prefixOf(message syscall.NetlinkMessage) (prefix netip.Prefix, known bool) {
	isRoute := message.Header.Type == unix.RTM_NEWROUTE || message.Header.Type == unix.RTM_DELROUTE
	if !isRoute || len(message.Data) < sizeofRoute {
		return netip.Prefix{}, false
	}
	bits := int(message.Data[1])
	for attribute, value := range attributes(message.Data) {
		if address, ok := netip.AddrFromSlice(value); ok && attribute == unix.RTA_DST {
			prefix, err := address.Prefix(bits)
			return prefix, err == nil
		}
	}
	return netip.Prefix{}, false
}
