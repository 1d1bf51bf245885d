package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A socket belongs to the cgroup of the process that made it, whoever uses it then. So each host has a process in its
// cgroup and network namespace that does nothing but make sockets and hand them to this one. The cgroups of a lab:
//
//	weir-<session>-<lab>/node1/host, .../node1/web1, ..., .../node2/web3, ..., .../client
//
// and an agent's --cgroup-root is its node's.

const (
	// socketsEnv tells a process that it is one that makes sockets.
	socketsEnv = "WEIR_LAB_SOCKETS"
	// socketsFD is where that process takes orders.
	socketsFD = 3
)

// addCgroup makes the lab's cgroup.
func (l *Lab) addCgroup() error {
	if !l.Options.Cgroups {
		return nil
	}
	root, err := cgroupMount()
	if err != nil {
		return err
	}
	l.cgroup = filepath.Join(root, strings.TrimSuffix(l.prefix, "-"))
	l.onClose(func() error { return removeCgroup(l.cgroup) })
	return os.Mkdir(l.cgroup, 0o755)
}

// enterCgroup gives a host a cgroup.
func (l *Lab) enterCgroup(h *Host) error {
	if !l.Options.Cgroups {
		return nil
	}
	switch h.node {
	case nil:
		h.cgroup = filepath.Join(l.cgroup, h.Role)
	case h:
		h.cgroup = filepath.Join(l.cgroup, h.Role, "host")
	default:
		h.cgroup = filepath.Join(l.cgroup, h.node.Role, h.Role)
	}
	return os.MkdirAll(h.cgroup, 0o755)
}

// CgroupRoot returns the cgroup of a node and all its pods.
func (h *Host) CgroupRoot() string { return filepath.Dir(h.node.cgroup) }

// Cgroup returns the cgroup that the host's sockets belong to.
func (h *Host) Cgroup() string { return h.cgroup }

// cgroupMount returns where cgroup v2 is mounted.
func cgroupMount() (string, error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("no cgroup v2 is mounted")
}

// removeCgroup removes a cgroup and those below it. Their processes have ended.
func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			err = errors.Join(err, removeCgroup(filepath.Join(path, entry.Name())))
		}
	}
	return errors.Join(err, poll(readyLimit, func() error { return os.Remove(path) }))
}

// removeCgroups removes what a session's labs have left.
func removeCgroups(id string) error {
	root, err := cgroupMount()
	if err != nil {
		return nil //nolint:nilerr // no cgroups, none left
	}
	paths, err := filepath.Glob(filepath.Join(root, namespacePrefix+id+"-*"))
	for _, path := range paths {
		err = errors.Join(err, removeCgroup(path))
	}
	return err
}

// socketMaker is the near end of a process that makes sockets.
type socketMaker struct {
	mu     sync.Mutex
	orders int // a socket
}

// ControlSocket is for the Control of a net.Dialer or net.ListenConfig that is used in the host's namespace: it makes
// the socket one of the host's cgroup, where it has one.
func (h *Host) ControlSocket(_, _ string, raw syscall.RawConn) error {
	if h.cgroup == "" {
		return nil
	}
	maker, err := h.maker()
	if err != nil {
		return err
	}
	var replaced error
	err = raw.Control(func(fd uintptr) { replaced = maker.replace(int(fd)) })
	return errors.Join(err, replaced)
}

// replace puts a new socket of the same kind in another's place.
func (m *socketMaker) replace(old int) error {
	var order [3]int
	for i, option := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		value, err := unix.GetsockoptInt(old, unix.SOL_SOCKET, option)
		if err != nil {
			return err
		}
		order[i] = value
	}
	made, err := m.make(order)
	if err != nil {
		return fmt.Errorf("have a socket made: %w", err)
	}
	defer unix.Close(made)
	for _, option := range [][2]int{{unix.SOL_SOCKET, unix.SO_BROADCAST}, {unix.SOL_SOCKET, unix.SO_REUSEADDR}, {unix.SOL_IPV6, unix.IPV6_V6ONLY}} {
		if option[0] == unix.SOL_IPV6 && order[0] != unix.AF_INET6 {
			continue
		}
		value, err := unix.GetsockoptInt(old, option[0], option[1])
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(made, option[0], option[1], value); err != nil {
			return err
		}
	}
	return unix.Dup3(made, old, unix.O_CLOEXEC)
}

// make orders a socket.
func (m *socketMaker) make(order [3]int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := unix.Write(m.orders, []byte{byte(order[0]), byte(order[1]), byte(order[2]), byte(order[2] >> 8)}); err != nil {
		return -1, err
	}
	status, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, size, _, _, err := unix.Recvmsg(m.orders, status, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if n == 0 {
		return -1, errors.New("the process that makes sockets has ended")
	}
	if status[0] != 0 {
		return -1, syscall.Errno(status[0])
	}
	messages, err := unix.ParseSocketControlMessage(rights[:size])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("%d messages: %w", len(messages), err)
	}
	sockets, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return sockets[0], nil
}

// maker returns the process that makes the host's sockets. It ends with the host.
func (h *Host) maker() (*socketMaker, error) {
	h.making.Lock()
	defer h.making.Unlock()
	if h.sockets != nil {
		return h.sockets, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	group, err := os.Open(h.cgroup)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	far := os.NewFile(uintptr(ends[1]), "orders")
	defer far.Close()
	process := exec.Command(self)
	process.Env = append(os.Environ(), socketsEnv+"=1")
	process.ExtraFiles = []*os.File{far} // becomes socketsFD
	process.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := h.Start(process); err != nil {
		return nil, errors.Join(err, unix.Close(ends[0]))
	}
	go process.Wait() //nolint:errcheck // killed with the lab, or ends with this process
	h.sockets = &socketMaker{orders: ends[0]}
	return h.sockets, nil
}

// closeSockets ends the process that makes the host's sockets, where there is one.
func (h *Host) closeSockets() error {
	h.making.Lock()
	defer h.making.Unlock()
	if h.sockets == nil {
		return nil
	}
	defer func() { h.sockets = nil }()
	return unix.Close(h.sockets.orders)
}

// makeSockets is that process: it makes sockets until nobody is there to order any.
func makeSockets() (code int) {
	for order := make([]byte, 4); ; {
		n, err := unix.Read(socketsFD, order)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != len(order) {
			return 0
		}
		fd, err := unix.Socket(int(order[0]), int(order[1])|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(order[2])|int(order[3])<<8)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			err = unix.Sendmsg(socketsFD, []byte{byte(errno)}, nil, nil, 0)
		} else {
			err = errors.Join(unix.Sendmsg(socketsFD, []byte{0}, unix.UnixRights(fd), nil, 0), unix.Close(fd))
		}
		if err != nil {
			return 1
		}
	}
}
