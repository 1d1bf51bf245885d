package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/status"
)

const (
	// sessionsDir holds one directory for each process that has labs, named after its pid.
	sessionsDir = "/run/weir-lab"
	// janitorEnv tells a process that it is a session's janitor.
	janitorEnv = "WEIR_LAB_JANITOR"
	// namespacePrefix starts the name of every network namespace of every lab.
	namespacePrefix = "weir-"
)

// Session owns everything that one process puts on the machine: network namespaces, mounts, files. All of it goes
// with Close; when the process dies without, a janitor process removes it, and failing that the next Open.
type Session struct {
	id      string
	dir     string
	lock    *os.File
	janitor *exec.Cmd
	leash   io.Closer // the janitor acts when this is closed
	labs    atomic.Int64
}

// RunHelper makes the process a janitor, or one that makes sockets (cgroup.go), and does not return, when it was started
// as one. A program that opens a session calls it first thing in main or TestMain.
func RunHelper() {
	if os.Getenv(socketsEnv) != "" {
		os.Exit(makeSockets())
	}
	id := os.Getenv(janitorEnv)
	if id == "" {
		return
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		os.Exit(1)
	}
	if err := reapWhenDead(id); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// Open starts the session of this process, after removing what dead ones left behind.
func Open() (*Session, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab makes network namespaces: run as root")
	}
	if err := reapStale(); err != nil {
		return nil, err
	}
	s := &Session{id: strconv.Itoa(os.Getpid())}
	s.dir = filepath.Join(sessionsDir, s.id)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := lockSession(s.dir)
	if err != nil {
		return nil, err
	}
	s.lock = lock
	return s, s.startJanitor()
}

// startJanitor starts this program again, in its own session so that no signal meant for us reaches it.
func (s *Session) startJanitor() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s.janitor = exec.Command(self)
	s.janitor.Env = append(os.Environ(), janitorEnv+"="+s.id)
	s.janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.leash, err = s.janitor.StdinPipe(); err != nil {
		return err
	}
	if err := s.janitor.Start(); err != nil {
		return fmt.Errorf("start the lab's janitor: %w", err)
	}
	return nil
}

// Close removes what the session's labs have not removed already.
func (s *Session) Close() error {
	return errors.Join(reap(s.id), s.lock.Close(), s.leash.Close(), s.janitor.Wait())
}

// Keep ends the session and leaves its labs on the machine, until Remove(id).
func (s *Session) Keep() (id string, err error) {
	if err := os.WriteFile(filepath.Join(s.dir, "keep"), nil, 0o644); err != nil {
		return "", err
	}
	return s.id, errors.Join(s.lock.Close(), s.leash.Close(), s.janitor.Wait())
}

// Remove removes every lab of a session that was kept.
func Remove(id string) error {
	lock, err := lockSession(filepath.Join(sessionsDir, id))
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", id, err)
	}
	defer lock.Close()
	return reap(id)
}

// Kept lists the sessions that were kept.
func Kept() ([]string, error) {
	marks, err := filepath.Glob(filepath.Join(sessionsDir, "*", "keep"))
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(marks))
	for i, mark := range marks {
		ids[i] = filepath.Base(filepath.Dir(mark))
	}
	return ids, nil
}

// errBusy says that a session's process is alive.
var errBusy = errors.New("in use by a living process")

// lockSession takes the lock that a living session holds.
func lockSession(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errBusy
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), lock.Close())
	}
	return lock, nil
}

// reapStale removes what sessions of dead processes left.
func reapStale() error {
	entries, err := os.ReadDir(sessionsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := reapIfDead(entry.Name()); err != nil && !errors.Is(err, errBusy) {
			return fmt.Errorf("remove the lab of dead process %s: %w", entry.Name(), err)
		}
	}
	return nil
}

// reapIfDead removes the session unless it was kept. errBusy: its process lives.
func reapIfDead(id string) error {
	dir := filepath.Join(sessionsDir, id)
	if _, err := os.Stat(filepath.Join(dir, "keep")); err == nil {
		return nil
	}
	lock, err := lockSession(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	return reap(id)
}

// reapWhenDead is reapIfDead of a process that has ended. The kernel closes its files in no certain order: who hears of
// one may find the lock still held.
func reapWhenDead(id string) error {
	for {
		if err := reapIfDead(id); !errors.Is(err, errBusy) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// reap ends the processes in the session's namespaces, and removes its mounts, namespaces and files.
func reap(id string) error {
	names, err := filepath.Glob(filepath.Join(netnsDir, namespacePrefix+id+"-*"))
	if err != nil {
		return err
	}
	dir := filepath.Join(sessionsDir, id)
	err = errors.Join(endProcesses(names), removeCgroups(id), forgetAgents(dir), unmountBelow(dir))
	for _, name := range names {
		err = errors.Join(err, deleteNamed(filepath.Base(name)))
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// forgetAgents removes what agents that were killed keep outside of the session's directory.
func forgetAgents(dir string) error {
	pins, err := filepath.Glob(filepath.Join(dir, "*", "*", bpffsName, "weir"))
	for _, path := range pins {
		err = errors.Join(err, status.Remove(path))
	}
	return err
}

// endProcesses kills every process but this one whose network namespace is one of those.
func endProcesses(namespaces []string) error {
	ours := map[uint64]bool{}
	for _, path := range namespaces {
		if inode, ok := inodeOf(path); ok {
			ours[inode] = true
		}
	}
	for range 50 {
		pids := processesIn(ours)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("processes %v do not end", processesIn(ours))
}

// processesIn lists the processes, zombies aside, in network namespaces with those inodes.
func processesIn(inodes map[uint64]bool) []int {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		if inode, ok := inodeOf(filepath.Join("/proc", name, "ns/net")); ok && inodes[inode] {
			pids = append(pids, pid)
		}
	}
	return pids
}

// inodeOf returns the inode that identifies a namespace.
func inodeOf(path string) (uint64, bool) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, false
	}
	return stat.Ino, true
}

// unmountBelow detaches every mount under dir.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[1], dir+"/") {
			continue
		}
		if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", fields[1], err)
		}
	}
	return nil
}
