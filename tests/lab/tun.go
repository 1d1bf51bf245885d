package lab

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// addTunPair connects two hosts by devices without an Ethernet header. Packets between them are carried by this
// process, so the wire ends with it.
func (l *Lab) addTunPair(a *Host, aName string, b *Host, bName string) error {
	near, err := a.addTun(aName)
	if err != nil {
		return err
	}
	l.onClose(near.Close)
	far, err := b.addTun(bName)
	if err != nil {
		return err
	}
	l.onClose(far.Close)
	go carry(near, far)
	go carry(far, near)
	return nil
}

// addTun makes a tun device, up, and returns its user side.
func (h *Host) addTun(name string) (*os.File, error) {
	var file *os.File
	err := h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		file = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add tun %s in %s: %w", name, h.Name, err)
	}
	return file, h.setUp(name)
}

// carry copies packets, one a read, until either side is closed. What the other side refuses is lost, as on a wire.
func carry(from, to *os.File) {
	packet := make([]byte, 65536)
	for {
		n, err := from.Read(packet)
		if err != nil {
			return
		}
		if _, err := to.Write(packet[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}
