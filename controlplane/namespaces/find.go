package namespaces

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inode identifies a network namespace as long as it is there; the kernel gives the number to another one after.
type inode uint64

// visit enters every network namespace of this host, each once, and calls f in it. What is left out is in the error.
// One that goes meanwhile is no error, nor is a process here and there that nobody may look at.
func visit(f func(inode) error) error {
	var failed error
	onOwnThread(func() {
		entered, seen := map[inode]bool{}, looks{}
		listed := eachPath(func(path string, process bool) {
			err := enterOnce(path, entered, f)
			if seen.count(process, err) {
				failed = addOnce(failed, err)
			}
		})
		failed = errors.Join(failed, listed, seen.denied(len(entered)))
	})
	return failed
}

// errBarred says that a namespace may be looked at, and not be entered.
var errBarred = errors.New("may not be entered")

// looks counts what may not be looked at.
type looks struct {
	processes, hidden int // of so many, these may not: their namespaces are found by others in them, if at all
	barred            int // namespaces that may not be entered
}

// count takes in what became of a path: of a process, or of a mount. One that may not be looked at is no failure by itself.
func (l *looks) count(process bool, err error) (failure bool) {
	if process {
		l.processes++
	}
	switch {
	case errors.Is(err, errBarred):
		l.barred++
	case errors.Is(err, fs.ErrPermission) && process:
		l.hidden++
	case errors.Is(err, fs.ErrPermission): // a mount that only another process has
	default:
		return err != nil
	}
	return false
}

// denied is an error if that was most of what there is. Found are the namespaces that may be looked at.
func (l *looks) denied(found int) error {
	if 2*l.hidden <= l.processes && 2*l.barred <= found {
		return nil
	}
	return errors.New("most network namespaces may not be looked at: run with CAP_SYS_PTRACE and CAP_SYS_ADMIN")
}

// onOwnThread calls f on a thread that ends with the call: whatever namespace f leaves it in, nobody else runs there.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// The main thread cannot end. While this goroutine keeps it, the next one gets another.
		onOwnThread(f)
		runtime.UnlockOSThread()
	}()
	<-done
}

// enterOnce enters the namespace of a path, and calls f in it, unless that has been tried before.
func enterOnce(path string, entered map[inode]bool, f func(inode) error) error {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return unlessGone(err, path)
	}
	if entered[inode(stat.Ino)] {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return unlessGone(err, path)
	}
	defer file.Close()
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if entered[inode(stat.Ino)] {
		return nil
	}
	entered[inode(stat.Ino)] = true
	err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
	if errors.Is(err, unix.EPERM) {
		return errBarred
	}
	if err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	return f(inode(stat.Ino))
}

// unlessGone keeps an error that does not say that a process or a file has gone.
func unlessGone(err error, path string) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return fmt.Errorf("look at %s: %w", path, err)
}

// addOnce joins errors, of which many would say the same.
func addOnce(all, err error) error {
	if all != nil && strings.Contains(all.Error(), err.Error()) {
		return all
	}
	return errors.Join(all, err)
}

// eachPath yields paths of all network namespaces: those of processes, and those that are mounted (`ip netns`,
// container runtimes), as this process and the first one of the host see them.
func eachPath(yield func(path string, process bool)) error {
	for _, pid := range []string{"self", "1"} {
		err := eachMount(filepath.Join("/proc", pid), func(path string) { yield(path, false) })
		if err != nil && pid == "self" {
			return err
		}
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, name := range names {
		if _, err := strconv.Atoi(name); err == nil {
			yield(filepath.Join("/proc", name, "ns/net"), true)
		}
	}
	return nil
}

// eachMount yields the network namespaces that are mounted where a process is.
func eachMount(process string, yield func(path string)) error {
	mounts, err := os.Open(filepath.Join(process, "mountinfo"))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		// id, parent, device, root, mount point: proc_pid_mountinfo(5)
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") {
			yield(filepath.Join(process, "root", unescape(fields[4])))
		}
	}
	return lines.Err()
}

// unescape reads a name as the kernel writes it in mountinfo: blanks and backslashes are octal.
func unescape(name string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(name)
}
