package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoSCTP is that this kernel has no SCTP.
var ErrNoSCTP = errors.New("this kernel has no SCTP")

// HaveSCTP tells whether this kernel has SCTP: nil or ErrNoSCTP.
func HaveSCTP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoSCTP, err)
	}
	return unix.Close(fd)
}

// ListenSCTP serves on all addresses of a host with the kernel's own SCTP: "<role>", and then whatever it is told.
func (h *Host) ListenSCTP() (net.Listener, error) {
	file, err := h.socketSCTP(unix.AF_INET6, func(fd int) error {
		return errors.Join(unix.Bind(fd, &unix.SockaddrInet6{Port: SCTPPort}), unix.Listen(fd, 16))
	})
	if err != nil {
		return nil, fmt.Errorf("%s serves SCTP: %w", h.Role, err)
	}
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("%s serves SCTP: %w", h.Role, err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go h.echo(conn)
		}
	}()
	return listener, nil
}

// echo says who it is, and then what it is told, to the end.
func (h *Host) echo(conn net.Conn) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(connectionLimit)); err != nil {
		return
	}
	if _, err := fmt.Fprintln(conn, h.Role); err == nil {
		// Not as a TCP connection would be copied, which is what it takes this for. Its peer sees what is wrong.
		io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
	}
}

// ConnectSCTP connects from one of the host's addresses with the kernel's own SCTP, and returns who is there.
func (h *Host) ConnectSCTP(from netip.Addr, to netip.AddrPort) (conn net.Conn, server string, err error) {
	family, local, remote := unix.AF_INET6, sockaddr(netip.AddrPortFrom(from, 0)), sockaddr(to)
	if to.Addr().Is4() {
		family = unix.AF_INET
	}
	file, err := h.socketSCTP(family, func(fd int) error {
		limit := unix.NsecToTimeval(requestLimit.Nanoseconds())
		if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit), unix.Bind(fd, local)); err != nil {
			return err
		}
		return unix.Connect(fd, remote)
	})
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", h.Role, err)
	}
	defer file.Close()
	if conn, err = net.FileConn(file); err != nil {
		return nil, "", fmt.Errorf("%s: %w", h.Role, err)
	}
	if err := conn.SetDeadline(time.Now().Add(connectionLimit)); err != nil {
		return nil, "", errors.Join(err, conn.Close())
	}
	if _, err := fmt.Fscanln(bufio.NewReaderSize(conn, 16), &server); err != nil {
		return nil, "", errors.Join(fmt.Errorf("%s asks who is there: %w", h.Role, err), conn.Close())
	}
	return conn, server, nil
}

// socketSCTP makes a socket of the host.
func (h *Host) socketSCTP(family int, prepare func(fd int) error) (*os.File, error) {
	var file *os.File
	err := h.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "sctp")
		return prepare(fd)
	})
	if err != nil && file != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, err
}

// sockaddr returns an address as the kernel's calls have it.
func sockaddr(address netip.AddrPort) unix.Sockaddr {
	if address.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(address.Port()), Addr: address.Addr().As16()}
}
