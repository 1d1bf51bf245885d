package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// socketDir holds the pinned links of the socket edge, each under its program's name in C.
const socketDir = "socket"

// socketHook is a program of the socket edge and where it attaches to a cgroup.
type socketHook struct {
	name    string
	attach  ebpf.AttachType
	program *ebpf.Program
}

// socketHooks returns the programs of the socket edge.
func (p *Programs) socketHooks() []socketHook {
	return []socketHook{
		{"socket_connect4", ebpf.AttachCGroupInet4Connect, p.SocketConnect4},
		{"socket_connect6", ebpf.AttachCGroupInet6Connect, p.SocketConnect6},
		{"socket_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, p.SocketSendmsg4},
		{"socket_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, p.SocketSendmsg6},
		{"socket_recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, p.SocketRecvmsg4},
		{"socket_recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, p.SocketRecvmsg6},
		{"socket_getpeername4", ebpf.AttachCgroupInet4GetPeername, p.SocketGetpeername4},
		{"socket_getpeername6", ebpf.AttachCgroupInet6GetPeername, p.SocketGetpeername6},
		{"socket_bind4", ebpf.AttachCGroupInet4Bind, p.SocketBind4},
		{"socket_bind6", ebpf.AttachCGroupInet6Bind, p.SocketBind6},
		{"socket_release", ebpf.AttachCgroupInetSockRelease, p.SocketRelease},
	}
}

// AttachSockets makes the sockets of a cgroup and those below it have the socket edge. root is a directory of
// cgroup v2. What a predecessor left there is adopted, or replaced in place. It returns how many programs it
// had to attach or replace: none, where all was right.
//
// Programs of others on the cgroup are left as they are and run too (BPF_F_ALLOW_MULTI). Where one does not allow that,
// nothing is attached: half an edge would be worse than none.
func (p *Programs) AttachSockets(pins, root string) (changed int, err error) {
	id, err := cgroupID(root)
	if err != nil {
		return 0, fmt.Errorf("read the cgroup %s: %w", root, err)
	}
	dir := filepath.Join(pins, socketDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("make %s: %w", dir, err)
	}
	for _, hook := range p.socketHooks() {
		did, err := hook.attachTo(root, id, filepath.Join(dir, hook.name))
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: a program there or above shares the cgroup with nobody (no BPF_F_ALLOW_MULTI); bpftool cgroup tree shows it: detach it, or name another --cgroup-root", err)
		}
		if err != nil {
			_, detached := DetachSockets(pins)
			return 0, errors.Join(fmt.Errorf("attach %s to cgroup %s: %w", hook.name, root, err), detached)
		}
		if did {
			changed++
		}
	}
	return changed, nil
}

// attachTo adopts the pinned link, replaces its program, or makes a new one.
func (h socketHook) attachTo(root string, id uint64, pin string) (changed bool, err error) {
	adopted, changed, err := h.adopt(id, pin)
	if adopted || err != nil {
		return changed, err
	}
	made, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: h.attach, Program: h.program})
	if err != nil {
		return false, err
	}
	defer made.Close()
	return true, pinInPlace(made, pin)
}

// adopt takes over the link that is pinned, if it is on this cgroup. One on another is detached.
func (h socketHook) adopt(id uint64, pin string) (adopted, changed bool, err error) {
	pinned, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("open the pinned link: %w", err)
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		return false, false, fmt.Errorf("read about the pinned link: %w", err)
	}
	if on := info.Cgroup(); on == nil || on.CgroupId != id {
		return false, false, detachPinned(pinned, pin)
	}
	wanted, err := h.program.Info()
	if err != nil {
		return false, false, fmt.Errorf("read about the program: %w", err)
	}
	if program, ok := wanted.ID(); ok && program == info.Program {
		return true, false, nil
	}
	if err := pinned.Update(h.program); err != nil {
		return false, false, fmt.Errorf("replace the program: %w", err)
	}
	return true, true, nil
}

// detachPinned detaches a link and removes its pin. The link of a cgroup that is gone is detached already.
func detachPinned(pinned link.Link, pin string) error {
	if err := pinned.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detach the pinned link: %w", err)
	}
	return os.Remove(pin)
}

// DetachSockets takes the socket edge of the instance away, and tells what it removed. To do so where there is none is fine.
func DetachSockets(pins string) (removed []string, failed error) {
	dir := filepath.Join(pins, socketDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		pin := filepath.Join(dir, entry.Name())
		pinned, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("open %s: %w", pin, err))
			continue
		}
		failed = errors.Join(failed, detachPinned(pinned, pin), pinned.Close())
		removed = append(removed, entry.Name()+" from its cgroup")
	}
	return removed, failed
}

// CheckCgroup tells whether a directory is one of cgroup v2.
func CheckCgroup(root string) error {
	if _, err := cgroupID(root); err != nil {
		return fmt.Errorf("read the cgroup %s: %w", root, err)
	}
	return nil
}

// cgroupID returns the kernel's id of a cgroup: the inode of its directory (kernfs, 64 bit).
func cgroupID(root string) (uint64, error) {
	var fsType unix.Statfs_t
	if err := unix.Statfs(root, &fsType); err != nil {
		return 0, err
	}
	if fsType.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, errors.New("it is not a directory of cgroup v2; name one with --cgroup-root")
	}
	var stat unix.Stat_t
	if err := unix.Stat(root, &stat); err != nil {
		return 0, err
	}
	return stat.Ino, nil
}
