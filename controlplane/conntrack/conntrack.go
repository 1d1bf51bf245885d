// Package conntrack reads the kernel's table of tracked connections of this network namespace.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Tuple is one direction of a connection.
type Tuple struct {
	Source, Destination netip.AddrPort
	Protocol            uint8 // unix.IPPROTO_TCP and the like
}

// Connection is one that the kernel tracks.
type Connection struct {
	Original Tuple // as its first packet came
	Reply    Tuple // as answers are expected
	Status   uint32
	State    uint8 // of TCP
}

// The states of TCP, of enum tcp_conntrack in linux/netfilter/nf_conntrack_tcp.h, between which a connection is one.
const (
	TCPSynReceived uint8 = 2 // by the client, of the server's
	TCPLastAck     uint8 = 6 // both sides have sent FIN
)

// What a status has, of enum ip_conntrack_status in linux/netfilter/nf_conntrack_common.h.
const (
	SeenReply uint32 = 1 << 1 // an answer has been seen
	DstNAT    uint32 = 1 << 5 // its destination is translated
)

// Each calls f with every tracked connection that has ports, until f returns false. They are not collected: there may
// be a million.
func Each(f func(Connection) bool) error {
	more := true
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if !more {
			return nil
		}
		request := nl.NewNetlinkRequest(netlink.ConntrackTable<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		var bad error
		err := request.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(message []byte) bool {
			connection, err := decode(message)
			if err != nil {
				bad = err
				return false
			}
			if connection.Original.Source.IsValid() {
				more = f(connection)
			}
			return more
		})
		// A kernel without connection tracking tracks nothing.
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err = errors.Join(err, bad); err != nil {
			return fmt.Errorf("list tracked connections: %w", err)
		}
	}
	return nil
}

// decode reads a message of ctnetlink. A connection without ports has no tuples.
func decode(message []byte) (c Connection, err error) {
	if len(message) < nl.SizeofNfgenmsg {
		return c, fmt.Errorf("a message of %d bytes", len(message))
	}
	attributes, err := decoder(message[nl.SizeofNfgenmsg:])
	if err != nil {
		return c, err
	}
	for attributes.Next() {
		switch attributes.Type() {
		case nl.CTA_TUPLE_ORIG:
			attributes.Nested(c.Original.decode)
		case nl.CTA_TUPLE_REPLY:
			attributes.Nested(c.Reply.decode)
		case nl.CTA_STATUS:
			c.Status = attributes.Uint32()
		case nl.CTA_PROTOINFO:
			attributes.Nested(c.decodeProtocol)
		}
	}
	return c, attributes.Err()
}

// decodeProtocol reads what is known of a protocol's connections alone.
func (c *Connection) decodeProtocol(attributes *mdnetlink.AttributeDecoder) error {
	for attributes.Next() {
		if attributes.Type() != nl.CTA_PROTOINFO_TCP {
			continue
		}
		attributes.Nested(func(tcp *mdnetlink.AttributeDecoder) error {
			for tcp.Next() {
				if tcp.Type() == nl.CTA_PROTOINFO_TCP_STATE {
					c.State = tcp.Uint8()
				}
			}
			return tcp.Err()
		})
	}
	return attributes.Err()
}

// decoder reads attributes, whose numbers are in the order of the network.
func decoder(attributes []byte) (*mdnetlink.AttributeDecoder, error) {
	d, err := mdnetlink.NewAttributeDecoder(attributes)
	if err == nil {
		d.ByteOrder = binary.BigEndian
	}
	return d, err
}

// decode reads a tuple. One without ports stays as it is.
func (t *Tuple) decode(attributes *mdnetlink.AttributeDecoder) error {
	var source, destination netip.Addr
	var from, to uint16
	ports := false
	for attributes.Next() {
		switch attributes.Type() {
		case nl.CTA_TUPLE_IP:
			attributes.Nested(func(ip *mdnetlink.AttributeDecoder) error {
				for ip.Next() {
					switch ip.Type() {
					case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
						source, _ = netip.AddrFromSlice(ip.Bytes())
					case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
						destination, _ = netip.AddrFromSlice(ip.Bytes())
					}
				}
				return ip.Err()
			})
		case nl.CTA_TUPLE_PROTO:
			attributes.Nested(func(proto *mdnetlink.AttributeDecoder) error {
				for proto.Next() {
					switch proto.Type() {
					case nl.CTA_PROTO_NUM:
						t.Protocol = proto.Uint8()
					case nl.CTA_PROTO_SRC_PORT:
						from, ports = proto.Uint16(), true
					case nl.CTA_PROTO_DST_PORT:
						to = proto.Uint16()
					}
				}
				return proto.Err()
			})
		}
	}
	if ports {
		t.Source, t.Destination = netip.AddrPortFrom(source, from), netip.AddrPortFrom(destination, to)
	}
	return attributes.Err()
}
