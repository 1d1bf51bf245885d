package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The ports that every server pod serves, of both families.
const (
	HTTPPort = 8080 // GET anything: "<role> <client address>"
	TCPPort  = 9000 // see serveTCP
	UDPPort  = 9000 // any datagram: "<role> <client address> <the datagram>"
)

// connectionLimit is how long a server keeps a connection: none outlives its test by much.
const connectionLimit = 2 * time.Minute

// Servers are what one pod serves.
type Servers struct {
	role    string
	closers []io.Closer
}

// Serve starts every server of a pod, in the network namespace of the calling thread.
func Serve(role string) (*Servers, error) {
	s := &Servers{role: role}
	for _, family := range []string{"4", "6"} {
		if err := s.serveFamily(family); err != nil {
			return nil, errors.Join(fmt.Errorf("serve as %s: %w", role, err), s.Close())
		}
	}
	return s, nil
}

// serveFamily starts the servers on the unspecified address of one family.
func (s *Servers) serveFamily(family string) error {
	web, err := net.Listen("tcp"+family, fmt.Sprintf(":%d", HTTPPort))
	if err != nil {
		return err
	}
	s.closers = append(s.closers, web)
	go s.serveHTTP(web)
	stream, err := net.Listen("tcp"+family, fmt.Sprintf(":%d", TCPPort))
	if err != nil {
		return err
	}
	s.closers = append(s.closers, stream)
	go s.serveTCP(stream)
	datagrams, err := listenUDP(family, fmt.Sprintf(":%d", UDPPort))
	if err != nil {
		return err
	}
	s.closers = append(s.closers, datagrams)
	go s.serveUDP(datagrams)
	return nil
}

// listenUDP listens on a socket that says which address a datagram was sent to.
func listenUDP(family, address string) (*net.UDPConn, error) {
	datagrams, err := net.ListenPacket("udp"+family, address)
	if err != nil {
		return nil, err
	}
	conn := datagrams.(*net.UDPConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	level, option := unix.IPPROTO_IP, unix.IP_PKTINFO
	if family == "6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, option, 1) }); err != nil || set != nil {
		return nil, errors.Join(err, set, conn.Close())
	}
	return conn, nil
}

// ServeAt serves TCP and UDP on exactly one address and port of the host.
func (h *Host) ServeAt(role string, address netip.AddrPort) (*Servers, error) {
	s := &Servers{role: role}
	family := "4"
	if address.Addr().Is6() {
		family = "6"
	}
	err := h.Do(func() error {
		stream, err := net.Listen("tcp"+family, address.String())
		if err != nil {
			return err
		}
		s.closers = append(s.closers, stream)
		go s.serveTCP(stream)
		datagrams, err := listenUDP(family, address.String())
		if err != nil {
			return err
		}
		s.closers = append(s.closers, datagrams)
		go s.serveUDP(datagrams)
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve as %s: %w", role, err), s.Close())
	}
	return s, nil
}

// Close stops listening.
func (s *Servers) Close() error {
	var err error
	for _, c := range s.closers {
		err = errors.Join(err, c.Close())
	}
	return err
}

// addServers starts the servers of every host that has them: web pods, the client, which is the world outside, and
// nodes if told so.
func (l *Lab) addServers() error {
	if l.Options.NoServers {
		return nil
	}
	hosts := append([]*Host{l.Client}, l.Web...)
	if l.Options.HostServers {
		hosts = append(hosts, l.Node1, l.Node2)
	}
	for _, host := range hosts {
		if err := l.addServersOn(host); err != nil {
			return err
		}
	}
	return nil
}

// addServersOn starts the servers of one host.
func (l *Lab) addServersOn(h *Host) error {
	var servers *Servers
	err := h.Do(func() (err error) {
		servers, err = Serve(h.Role)
		return err
	})
	if err != nil {
		return err
	}
	l.onClose(servers.Close)
	return nil
}

// serveHTTP answers until the listener is closed.
func (s *Servers) serveHTTP(listener net.Listener) {
	server := &http.Server{
		ReadTimeout: connectionLimit,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s\n", s.role, r.RemoteAddr)
		}),
	}
	server.Serve(listener) //nolint:errcheck // it ends when the listener is closed, and has nobody to tell
}

// serveUDP answers every datagram, from the address that it was sent to, until the socket is closed.
func (s *Servers) serveUDP(conn *net.UDPConn) {
	buffer, sentTo := make([]byte, 65536), make([]byte, 128)
	for {
		n, size, _, client, err := conn.ReadMsgUDPAddrPort(buffer, sentTo)
		if err != nil {
			return
		}
		answer := fmt.Appendf(nil, "%s %s %s", s.role, unmapped(client), buffer[:n])
		// What fits on the way here shall fit on the way back.
		answer = answer[:min(len(answer), max(n, 512))]
		// A client that has gone is its own affair.
		_, _, _ = conn.WriteMsgUDPAddrPort(answer, byAnyDevice(sentTo[:size]), client)
	}
}

// byAnyDevice makes the message that says where a datagram was sent to one that says where its answer comes from.
func byAnyDevice(sentTo []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(sentTo)
	if err != nil || len(messages) != 1 {
		return nil
	}
	device := messages[0].Data[:4] // of struct in_pktinfo
	if messages[0].Header.Level == unix.IPPROTO_IPV6 {
		device = messages[0].Data[16:20] // of struct in6_pktinfo
	}
	clear(device)
	return sentTo
}

// serveTCP accepts connections on which a client writes lines:
//
//	who               answered by "<role> <client address>"
//	exchange UP DOWN  UP bytes follow, and DOWN bytes with their SHA-256 come back at the same time; then the
//	                  SHA-256 of what was received
//	echo              every byte that follows comes back
//	bye               the server closes
func (s *Servers) serveTCP(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go s.serveConn(conn.(*net.TCPConn))
	}
}

// serveConn carries out a client's lines until it closes, or sends one that makes no sense.
func (s *Servers) serveConn(conn *net.TCPConn) {
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(connectionLimit)) != nil {
		return
	}
	client := bufio.NewReader(conn)
	for {
		line, err := client.ReadString('\n')
		if err != nil {
			return
		}
		if s.carryOut(strings.TrimSpace(line), conn, client) != nil {
			return
		}
	}
}

// carryOut does what one line of a client asks.
func (s *Servers) carryOut(line string, conn *net.TCPConn, client io.Reader) error {
	var up, down int64
	switch {
	case line == "who":
		_, err := fmt.Fprintf(conn, "%s %s\n", s.role, conn.RemoteAddr())
		return err
	case line == "bye":
		return io.EOF
	case line == "echo":
		_, err := io.Copy(conn, client)
		return err
	default:
		if _, err := fmt.Sscanf(line, "exchange %d %d", &up, &down); err != nil {
			return err
		}
		return exchange(conn, client, up, down)
	}
}

// exchange takes up bytes and sends down bytes at the same time, then the digest of what it took.
func exchange(conn io.Writer, client io.Reader, up, down int64) error {
	received := make(chan []byte, 1)
	go func() {
		digest, err := digestOf(io.Discard, io.LimitReader(client, up), up)
		if err != nil {
			digest = nil
		}
		received <- digest
	}()
	if err := sendNoise(conn, down); err != nil {
		return err
	}
	digest := <-received
	if digest == nil {
		return io.ErrUnexpectedEOF
	}
	_, err := conn.Write(digest)
	return err
}

// sendNoise writes size bytes that do not compress or repeat, followed by their SHA-256.
func sendNoise(to io.Writer, size int64) error {
	digest, err := digestOf(to, io.LimitReader(noise(), size), size)
	if err != nil {
		return err
	}
	_, err = to.Write(digest)
	return err
}

// digestOf copies size bytes and returns their SHA-256.
func digestOf(to io.Writer, from io.Reader, size int64) ([]byte, error) {
	hash := sha256.New()
	// 256 KiB a write gives the stack something to make large segments of.
	n, err := io.CopyBuffer(io.MultiWriter(to, hash), from, make([]byte, 256<<10))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return hash.Sum(nil), err
}

// noise is an endless source of random bytes.
func noise() io.Reader {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	return rand.NewChaCha8(seed)
}

// unmapped turns a v4-mapped address into what it stands for.
func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// WaitServe serves as a pod until ctx ends: what a process of its own does.
func WaitServe(ctx context.Context, role string) error {
	servers, err := Serve(role)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return servers.Close()
}
