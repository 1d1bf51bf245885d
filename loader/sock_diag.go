package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// destroyByNetlink closes sockets of a protocol, by their cookies, where programs cannot (before Linux 6.5). The
// kernel wants to be told their addresses as well.
func destroyByNetlink(protocol int, cookies []uint64) error {
	doomed := map[[2]uint32]bool{}
	for _, cookie := range cookies {
		doomed[[2]uint32{uint32(cookie), uint32(cookie >> 32)}] = true
	}
	list := netlink.SocketDiagUDP
	if protocol == unix.IPPROTO_TCP {
		list = netlink.SocketDiagTCP
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := list(family)
		if err != nil {
			return fmt.Errorf("list sockets by netlink: %w", err)
		}
		for _, socket := range sockets {
			if !doomed[socket.ID.Cookie] {
				continue
			}
			if err := destroySocket(socket, protocol); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("close a socket by netlink: %w; the kernel needs CONFIG_INET_DIAG_DESTROY", err)
			}
		}
	}
	return nil
}

func destroySocket(socket *netlink.Socket, protocol int) error {
	request := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	request.AddRawData(diagRequest(socket, protocol))
	_, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}

// diagRequest is a struct inet_diag_req_v2 (linux/inet_diag.h) that names one socket.
func diagRequest(socket *netlink.Socket, protocol int) []byte {
	request := []byte{socket.Family, uint8(protocol), 0, 0}
	request = binary.NativeEndian.AppendUint32(request, 0) // states
	request = binary.BigEndian.AppendUint16(request, socket.ID.SourcePort)
	request = binary.BigEndian.AppendUint16(request, socket.ID.DestinationPort)
	request = append(request, diagAddress(socket.ID.Source, socket.Family)...)
	request = append(request, diagAddress(socket.ID.Destination, socket.Family)...)
	request = binary.NativeEndian.AppendUint32(request, socket.ID.Interface)
	request = binary.NativeEndian.AppendUint32(request, socket.ID.Cookie[0])
	return binary.NativeEndian.AppendUint32(request, socket.ID.Cookie[1])
}

func diagAddress(ip net.IP, family uint8) []byte {
	address := make([]byte, 16)
	if v4 := ip.To4(); family == unix.AF_INET && v4 != nil {
		copy(address, v4)
		return address
	}
	copy(address, ip.To16())
	return address
}
