package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// requestLimit bounds one request. It is longer than the kernel's first retransmission of a SYN, so that a lost
// packet shows as a retransmission (Answer.Retransmits) and not only as an error.
const requestLimit = 3 * time.Second

// Answer is what a server said.
type Answer struct {
	Server      string         // role of the pod that answered
	Client      netip.AddrPort // whom the server saw
	Retransmits uint32         // segments the client had to send twice; TCP only
}

// Conn is a connection of a host of the lab to a server.
type Conn struct {
	net.Conn
	protocol compile.Protocol
}

// Dial connects from the host, by TCP or UDP. A valid from is bound to first, with its port if it has one, also
// where another socket has them: two connections of one client port differ in their destinations.
func (h *Host) Dial(protocol compile.Protocol, from, to netip.AddrPort) (*Conn, error) {
	return h.DialWithin(requestLimit, protocol, from, to)
}

// DialWithin is Dial with a time limit of the caller's.
func (h *Host) DialWithin(limit time.Duration, protocol compile.Protocol, from, to netip.AddrPort) (*Conn, error) {
	dialer := net.Dialer{Timeout: limit, Control: h.ControlSocket}
	if from.Port() != 0 {
		dialer.Control = func(network, address string, raw syscall.RawConn) error {
			return errors.Join(h.ControlSocket(network, address, raw), shareAddress(raw))
		}
	}
	network := "tcp"
	if from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	if protocol == compile.UDP {
		network = "udp"
		if from.IsValid() {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(from)
		}
	}
	conn := &Conn{protocol: protocol}
	err := h.Do(func() (err error) {
		conn.Conn, err = dialer.Dial(network, to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Role, err)
	}
	return conn, nil
}

// shareAddress lets a socket have an address and port that another one has. Not for ports of the kernel's choice: it
// would give two UDP sockets the same.
func shareAddress(raw syscall.RawConn) error {
	var option error
	err := raw.Control(func(fd uintptr) {
		option = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, option)
}

// Ask asks who is there, once: a datagram is not repeated.
func (c *Conn) Ask() (Answer, error) { return c.AskWithin(requestLimit) }

// AskWithin is Ask with a time limit of the caller's.
func (c *Conn) AskWithin(limit time.Duration) (Answer, error) {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return Answer{}, err
	}
	// A datagram says which one it is, so that a late answer is not taken for this one's.
	question := "who"
	if c.protocol == compile.UDP {
		question = fmt.Sprintf("who-%x", rand.Uint64())
	}
	if _, err := io.WriteString(c, question+"\n"); err != nil {
		return Answer{}, err
	}
	for {
		reply := make([]byte, 2048)
		n, err := c.Read(reply)
		if err != nil {
			return Answer{}, err
		}
		text := string(reply[:n])
		if c.protocol == compile.UDP && !strings.Contains(text, question) {
			continue
		}
		answer, err := parseAnswer(text)
		if err != nil {
			return Answer{}, err
		}
		answer.Retransmits, err = c.Retransmits()
		return answer, err
	}
}

// parseAnswer reads "<role> <client address>", whatever follows.
func parseAnswer(text string) (Answer, error) {
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return Answer{}, fmt.Errorf("answer %q is not of a lab server", text)
	}
	client, err := netip.ParseAddrPort(fields[1])
	if err != nil {
		return Answer{}, fmt.Errorf("answer %q is not of a lab server: %w", text, err)
	}
	return Answer{Server: fields[0], Client: unmapped(client)}, nil
}

// Retransmits counts the TCP segments, SYNs included, that were sent again.
func (c *Conn) Retransmits() (uint32, error) {
	info, err := c.info()
	return info.Total_retrans, err
}

// Received counts the bytes that have come by TCP, read or not.
func (c *Conn) Received() (uint64, error) {
	info, err := c.info()
	return info.Bytes_received, err
}

// info is what the kernel says of a TCP connection; nothing of others.
func (c *Conn) info() (unix.TCPInfo, error) {
	conn, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return unix.TCPInfo{}, nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return unix.TCPInfo{}, err
	}
	var info *unix.TCPInfo
	var option error
	if err := raw.Control(func(fd uintptr) {
		info, option = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil {
		return unix.TCPInfo{}, err
	}
	if option != nil {
		return unix.TCPInfo{}, option
	}
	return *info, nil
}

// LetServerClose has the server close a TCP connection first, so that the client's port is free again at once: it is
// the server that waits for late segments.
func (c *Conn) LetServerClose() error {
	if err := c.SetDeadline(time.Now().Add(requestLimit)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "bye\n"); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("the server did not close: %w", err)
	}
	return c.Close()
}

// Abort closes a TCP connection by a reset.
func (c *Conn) Abort() error {
	if conn, ok := c.Conn.(*net.TCPConn); ok {
		if err := conn.SetLinger(0); err != nil {
			return err
		}
	}
	return c.Close()
}

// LocalAddrPort is the connection's own address and port.
func (c *Conn) LocalAddrPort() netip.AddrPort { return addrPortOf(c.LocalAddr()) }

// RemoteAddrPort is what the connection was made to.
func (c *Conn) RemoteAddrPort() netip.AddrPort { return addrPortOf(c.RemoteAddr()) }

// addrPortOf turns the net package's kind of address into the other one.
func addrPortOf(address net.Addr) netip.AddrPort {
	switch address := address.(type) {
	case *net.TCPAddr:
		return unmapped(address.AddrPort())
	case *net.UDPAddr:
		return unmapped(address.AddrPort())
	default:
		return netip.AddrPort{}
	}
}

// Ask connects from the host, asks once who is there, and closes. An invalid from leaves address and port to the
// kernel.
func (h *Host) Ask(protocol compile.Protocol, from, to netip.AddrPort) (Answer, error) {
	return h.AskWithin(requestLimit, protocol, from, to)
}

// AskWithin is Ask with a time limit of the caller's.
func (h *Host) AskWithin(limit time.Duration, protocol compile.Protocol, from, to netip.AddrPort) (Answer, error) {
	conn, err := h.DialWithin(limit, protocol, from, to)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	answer, err := conn.AskWithin(limit)
	if err != nil {
		return Answer{}, fmt.Errorf("%s asks %s by %s: %w", h.Role, to, protocol, err)
	}
	return answer, nil
}

// Exchange sends up bytes and receives down bytes at the same time, and compares both with what the other side
// sent or got.
func (c *Conn) Exchange(up, down int64, limit time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "exchange %d %d\n", up, down); err != nil {
		return err
	}
	type sent struct {
		digest []byte
		err    error
	}
	done := make(chan sent, 1)
	go func() {
		digest, err := digestOf(c, io.LimitReader(noise(), up), up)
		done <- sent{digest, err}
	}()
	got, err := digestOf(io.Discard, io.LimitReader(c, down), down)
	if err != nil {
		return fmt.Errorf("receive %d bytes: %w", down, err)
	}
	if err := expectDigest(c, got, "received"); err != nil {
		return err
	}
	result := <-done
	if result.err != nil {
		return fmt.Errorf("send %d bytes: %w", up, result.err)
	}
	return expectDigest(c, result.digest, "sent")
}

// expectDigest reads the other side's SHA-256 and compares.
func expectDigest(from io.Reader, want []byte, what string) error {
	theirs := make([]byte, sha256.Size)
	if _, err := io.ReadFull(from, theirs); err != nil {
		return fmt.Errorf("read the digest of what was %s: %w", what, err)
	}
	if !bytes.Equal(theirs, want) {
		return fmt.Errorf("what was %s arrived changed", what)
	}
	return nil
}

// Echo sends random bytes and compares what comes back, until ctx ends. It returns how many came back.
func (c *Conn) Echo(ctx context.Context) (int64, error) {
	if _, err := io.WriteString(c, "echo\n"); err != nil {
		return 0, err
	}
	var total int64
	source := noise()
	block, back := make([]byte, 64<<10), make([]byte, 64<<10)
	for ctx.Err() == nil {
		if err := c.SetDeadline(time.Now().Add(2 * requestLimit)); err != nil {
			return total, err
		}
		if _, err := io.ReadFull(source, block); err != nil {
			return total, err
		}
		if _, err := c.Write(block); err != nil {
			return total, fmt.Errorf("after %d bytes: %w", total, err)
		}
		if _, err := io.ReadFull(c, back); err != nil {
			return total, fmt.Errorf("after %d bytes: %w", total, err)
		}
		if !bytes.Equal(block, back) {
			return total, fmt.Errorf("after %d bytes: what came back is not what was sent", total)
		}
		total += int64(len(back))
	}
	return total, nil
}
