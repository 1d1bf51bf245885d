package surroundings

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// port is a port of the node.
type port struct {
	protocol compile.Protocol
	number   uint16
}

// nodePorts tells which NodePorts are also a process's, or a hostPort of a Pod: neither gets anything from outside any more.
func nodePorts(owners map[port]compile.ID, pods []compile.Pod) ([]compile.Problem, error) {
	if len(owners) == 0 {
		return nil, nil
	}
	var problems []compile.Problem
	tell := func(p port, whose string) {
		owner, taken := owners[p]
		if !taken {
			return
		}
		delete(owners, p) // one sentence suffices
		problems = append(problems, compile.Problem{
			Object: fmt.Sprintf("Service %s/%s", owner.Namespace, owner.Name), Reason: "NodePortTaken",
			Message: fmt.Sprintf("NodePort %d of %s is also %s on this node, which gets nothing from outside any more: give one of them another port",
				p.number, p.protocol, whose),
		})
	}
	for _, pod := range pods {
		for _, p := range pod.HostPorts {
			tell(port{p.Protocol, p.Number}, "a hostPort of Pod "+pod.Name)
		}
	}
	for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP} {
		listeners, err := listening(protocol)
		if err != nil {
			return problems, fmt.Errorf("list listening sockets: %w", err)
		}
		for _, number := range listeners {
			tell(port{protocol, number}, "that of a process that listens")
		}
	}
	return problems, nil
}

const (
	// stateClosed is that of UDP sockets that are not connected, stateListen that of TCP sockets that listen (TCP_CLOSE and
	// TCP_LISTEN in linux/tcp_states.h).
	stateClosed, stateListen = 7, 10
	// requestLength is that of struct inet_diag_req_v2; an answer has at least the address of the socket.
	requestLength, answerLength = 56, 24
)

// listening lists the ports that processes of this network namespace listen on, but for those on loopback addresses.
func listening(protocol compile.Protocol) ([]uint16, error) {
	connection, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	var ports []uint16
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		state := uint32(1) << stateListen
		if protocol == compile.UDP {
			state = 1 << stateClosed
		}
		request := append([]byte{family, uint8(protocol), 0, 0}, make([]byte, requestLength-4)...)
		binary.NativeEndian.PutUint32(request[4:], state)
		answers, err := connection.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | netlink.Dump}, Data: request,
		})
		if err != nil {
			return nil, err
		}
		for _, answer := range answers {
			if len(answer.Data) >= answerLength && !addressOf(answer.Data).IsLoopback() {
				ports = append(ports, binary.BigEndian.Uint16(answer.Data[4:]))
			}
		}
	}
	return ports, nil
}

// addressOf returns where a socket listens, from a struct inet_diag_msg.
func addressOf(answer []byte) netip.Addr {
	if answer[0] == unix.AF_INET {
		return netip.AddrFrom4([4]byte(answer[8:12]))
	}
	return netip.AddrFrom16([16]byte(answer[8:24])).Unmap()
}
