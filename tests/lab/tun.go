package lab

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tunQueue is how many packets wait in a tun device for this process: more than the windows of several connections let on
// the way. In the kernel's 500 a transfer leaves no room for another test's datagram.
const tunQueue = 32768

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
	return file, errors.Join(h.setQueue(name, tunQueue), h.setUp(name))
}

// setQueue says how many packets wait in a device before more are dropped.
func (h *Host) setQueue(name string, packets int) error {
	link, err := h.Link(name)
	if err != nil {
		return err
	}
	if err := h.links.LinkSetTxQLen(link, packets); err != nil {
		return fmt.Errorf("make room for %d packets in %s of %s: %w", packets, name, h.Name, err)
	}
	return nil
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
