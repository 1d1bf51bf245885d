package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
)

// SCTPPort is the port of servers of SCTP.
const SCTPPort = 3868

// The kernel here has no SCTP. So peers are raw sockets, with as much of RFC 9260 as conntrack wants to see.
const (
	chunkData             = 0
	chunkInit             = 1
	chunkInitAck          = 2
	chunkAbort            = 6
	chunkShutdown         = 7
	chunkShutdownAck      = 8
	chunkCookieEcho       = 10
	chunkCookieAck        = 11
	chunkShutdownComplete = 14
)

// sctpPacket is a packet of one chunk.
type sctpPacket struct {
	from, to uint16
	tag      uint32
	chunk    byte
	body     []byte
}

// bytes builds the packet, with its checksum.
func (p sctpPacket) bytes() []byte {
	packet := binary.BigEndian.AppendUint16(nil, p.from)
	packet = binary.BigEndian.AppendUint16(packet, p.to)
	packet = binary.BigEndian.AppendUint32(packet, p.tag)
	packet = append(packet, 0, 0, 0, 0, p.chunk, 0)
	packet = binary.BigEndian.AppendUint16(packet, uint16(4+len(p.body)))
	packet = append(packet, p.body...)
	packet = append(packet, make([]byte, -len(p.body)&3)...)
	binary.LittleEndian.PutUint32(packet[8:], castagnoli(packet))
	return packet
}

// readSCTP reads a packet of one chunk. An error says that it has a wrong checksum or is none.
func readSCTP(packet []byte) (p sctpPacket, err error) {
	if len(packet) < 16 {
		return p, errors.New("an SCTP packet without a chunk")
	}
	length := int(binary.BigEndian.Uint16(packet[14:]))
	if length < 4 || 12+length > len(packet) {
		return p, errors.New("an SCTP chunk that is cut")
	}
	said := binary.LittleEndian.Uint32(packet[8:])
	clear(packet[8:12])
	if said != castagnoli(packet) {
		return p, fmt.Errorf("the checksum of an SCTP packet is %#x, and not %#x", said, castagnoli(packet))
	}
	return sctpPacket{
		from: binary.BigEndian.Uint16(packet), to: binary.BigEndian.Uint16(packet[2:]),
		tag: binary.BigEndian.Uint32(packet[4:]), chunk: packet[12], body: append([]byte{}, packet[16:12+length]...),
	}, nil
}

func castagnoli(packet []byte) uint32 {
	return crc32.Checksum(packet, crc32.MakeTable(crc32.Castagnoli))
}

// initBody is what an INIT and an INIT ACK say: the tag that its sender wants, and a cookie.
func initBody(tag uint32) []byte {
	body := binary.BigEndian.AppendUint32(nil, tag)
	body = append(body, 0, 1, 0, 0, 0, 10, 0, 10) // window, streams
	body = append(body, 0, 0, 0, 1)               // the first TSN
	return append(body, 0, 7, 0, 8, 'w', 'e', 'i', 'r')
}

// SCTPServer answers on all addresses of a host.
type SCTPServer struct{ sockets []*net.IPConn }

// ServeSCTP has a host answer clients of SCTP, until the server is closed. Its tag is its own.
func (h *Host) ServeSCTP(tag uint32) (*SCTPServer, error) {
	s := &SCTPServer{}
	for _, network := range []string{"ip4:132", "ip6:132"} {
		err := h.Do(func() error {
			socket, err := net.ListenIP(network, nil)
			if err == nil {
				s.sockets = append(s.sockets, socket)
			}
			return err
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open a raw socket of %s: %w", h.Role, err), s.Close())
		}
	}
	for _, socket := range s.sockets {
		go serveSCTP(socket, tag)
	}
	return s, nil
}

// Close ends it.
func (s *SCTPServer) Close() (err error) {
	for _, socket := range s.sockets {
		err = errors.Join(err, socket.Close())
	}
	return err
}

// serveSCTP answers until the socket is closed.
func serveSCTP(socket *net.IPConn, tag uint32) {
	answers := map[byte]byte{
		chunkInit: chunkInitAck, chunkCookieEcho: chunkCookieAck, chunkData: chunkData, chunkShutdown: chunkShutdownAck,
	}
	clients := map[string]uint32{} // the tags they want
	buffer := make([]byte, 2048)
	for {
		n, from, err := socket.ReadFromIP(buffer)
		if err != nil {
			return
		}
		asked, err := readSCTP(buffer[:n])
		chunk, known := answers[asked.chunk]
		if err != nil || !known || asked.to != SCTPPort {
			continue
		}
		answer := sctpPacket{from: asked.to, to: asked.from, chunk: chunk, body: asked.body}
		client := fmt.Sprint(from, asked.from)
		if asked.chunk == chunkInit {
			clients[client] = binary.BigEndian.Uint32(asked.body)
			answer.body = initBody(tag)
		} else if asked.tag != tag {
			continue
		}
		answer.tag = clients[client]
		if _, err := socket.WriteToIP(answer.bytes(), from); err != nil {
			return
		}
	}
}

// SCTPClient is one end of an association.
type SCTPClient struct {
	raw      *net.IPConn
	from, to uint16
	tag      uint32 // of packets to it
	peer     uint32 // of packets to its peer
}

// DialSCTP asks for an association, and returns what tag the server has. ErrSCTPAborted: it has refused.
func (h *Host) DialSCTP(family compile.Family, port uint16, to netip.AddrPort) (client *SCTPClient, server uint32, err error) {
	raw, err := h.dialRaw("132", h.Addr(family), to.Addr())
	if err != nil {
		return nil, 0, err
	}
	c := &SCTPClient{raw: raw, from: port, to: to.Port(), tag: rand.Uint32() | 1}
	answer, err := c.ask(chunkInit, initBody(c.tag), chunkInitAck)
	if err == nil {
		c.peer = binary.BigEndian.Uint32(answer)
		_, err = c.ask(chunkCookieEcho, []byte("weir"), chunkCookieAck)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("%s asks %s by SCTP: %w", h.Role, to, err), raw.Close())
	}
	return c, c.peer, nil
}

// ErrSCTPAborted is an ABORT in place of an answer.
var ErrSCTPAborted = errors.New("an ABORT")

// Exchange sends a message that comes back.
func (c *SCTPClient) Exchange(length int) error {
	message := make([]byte, length)
	for i := range message {
		message[i] = byte(rand.Uint32())
	}
	answer, err := c.ask(chunkData, message, chunkData)
	if err == nil && string(answer) != string(message) {
		return fmt.Errorf("of %d bytes there came back %d others", length, len(answer))
	}
	return err
}

// Close shuts the association down.
func (c *SCTPClient) Close() error {
	_, err := c.ask(chunkShutdown, []byte{0, 0, 0, 1}, chunkShutdownAck)
	return errors.Join(err, c.send(chunkShutdownComplete, nil), c.raw.Close())
}

func (c *SCTPClient) send(chunk byte, body []byte) error {
	_, err := c.raw.Write(sctpPacket{from: c.from, to: c.to, tag: c.peer, chunk: chunk, body: body}.bytes())
	return err
}

// ask sends a chunk, again and again as long as nothing comes back, and returns the answer's body.
func (c *SCTPClient) ask(chunk byte, body []byte, want byte) ([]byte, error) {
	for end := time.Now().Add(requestLimit); time.Now().Before(end); {
		if err := c.send(chunk, body); err != nil {
			return nil, err
		}
		answer, err := c.read(want)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return answer, err
		}
	}
	return nil, fmt.Errorf("chunk %d: no answer", chunk)
}

// read waits for an answer to this client.
func (c *SCTPClient) read(want byte) ([]byte, error) {
	if err := c.raw.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, err
	}
	buffer := make([]byte, 2048)
	for {
		n, _, err := c.raw.ReadFromIP(buffer)
		if err != nil {
			return nil, err
		}
		if n < 4 || binary.BigEndian.Uint16(buffer) != c.to || binary.BigEndian.Uint16(buffer[2:]) != c.from {
			continue // another association's
		}
		answer, err := readSCTP(buffer[:n])
		switch {
		case err != nil:
			return nil, err
		case answer.tag != c.tag:
			return nil, fmt.Errorf("an answer with tag %#x, and not %#x", answer.tag, c.tag)
		case answer.chunk == chunkAbort:
			return nil, ErrSCTPAborted
		case answer.chunk == want:
			return answer.body, nil
		}
	}
}
