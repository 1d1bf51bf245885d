package nodecheck

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// States of sockets, of include/net/tcp_states.h. A UDP socket that is not connected is closed.
const (
	stateClose  = 7
	stateListen = 10
)

// The parts of struct inet_diag_msg and struct inet_diag_req_v2 of linux/inet_diag.h that are used here.
const (
	requestSize   = 56
	messageSize   = 72
	sourcePort    = 4
	sourceAddress = 8
)

// socket is one of the node that waits for whoever sends.
type socket struct {
	protocol compile.Protocol
	family   compile.Family
	address  netip.AddrPort
}

// listSockets lists the sockets of the network namespace that wait.
func listSockets() ([]socket, error) {
	var sockets []socket
	for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP} {
		for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
			some, err := listSocketsOf(protocol, family)
			if err != nil {
				return nil, fmt.Errorf("list the %s sockets of %s: %w", protocol, family, err)
			}
			sockets = append(sockets, some...)
		}
	}
	return sockets, nil
}

func listSocketsOf(protocol compile.Protocol, family compile.Family) ([]socket, error) {
	number, state := uint8(unix.AF_INET), stateListen
	if family == compile.IPv6 {
		number = unix.AF_INET6
	}
	if protocol == compile.UDP {
		state = stateClose
	}
	wanted := make([]byte, requestSize)
	wanted[0], wanted[1] = number, uint8(protocol)
	binary.NativeEndian.PutUint32(wanted[4:], 1<<state)
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	request.AddRawData(wanted)
	messages, err := request.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil {
		return nil, err
	}
	sockets := make([]socket, 0, len(messages))
	for _, m := range messages {
		if len(m) < messageSize {
			return nil, fmt.Errorf("a message of %d bytes", len(m))
		}
		address := netip.AddrFrom4([4]byte(m[sourceAddress:]))
		if family == compile.IPv6 {
			address = netip.AddrFrom16([16]byte(m[sourceAddress:])).Unmap()
		}
		sockets = append(sockets, socket{protocol, family, netip.AddrPortFrom(address, binary.BigEndian.Uint16(m[sourcePort:]))})
	}
	return sockets, nil
}

// listens tells whether a socket waits on a NodePort.
func (f facts) listens(id compile.ID, nodePort compile.Frontend) bool {
	for _, s := range f.sockets {
		sameFamily := s.family == id.Family || s.address.Addr() == netip.IPv6Unspecified() // which is for both, mostly
		if s.protocol == id.Protocol && sameFamily && s.address.Port() == nodePort.Address.Port() && !s.address.Addr().IsLoopback() {
			return true
		}
	}
	return false
}

// problemListening says that a process waits in vain.
func problemListening(id compile.ID, nodePort compile.Frontend) compile.Problem {
	return compile.Problem{
		Object: fmt.Sprintf("Service %s/%s", id.Namespace, id.Name), Reason: "NodePortListening",
		Message: fmt.Sprintf("a process of this node listens on %s port %d, which is the Service's NodePort: the Service is reached there, not the process; give one of them another port (ss -lnp shows whose it is)",
			id.Protocol, nodePort.Address.Port()),
	}
}
