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
		entered := map[inode]bool{}
		tried, denied := 0, 0
		listed := eachPath(func(path string) {
			known, err := enterOnce(path, entered, f)
			if known {
				return
			}
			tried++
			if errors.Is(err, fs.ErrPermission) {
				denied++
			} else if err != nil {
				failed = addOnce(failed, err)
			}
		})
		failed = errors.Join(failed, listed)
		if 2*denied > tried {
			failed = addOnce(failed, errors.New("most network namespaces may not be looked at: run with CAP_SYS_PTRACE and CAP_SYS_ADMIN"))
		}
	})
	return failed
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
func enterOnce(path string, entered map[inode]bool, f func(inode) error) (known bool, err error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return false, unlessGone(err, path)
	}
	if entered[inode(stat.Ino)] {
		return true, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return false, unlessGone(err, path)
	}
	defer file.Close()
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	if entered[inode(stat.Ino)] {
		return true, nil
	}
	entered[inode(stat.Ino)] = true
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return false, fmt.Errorf("enter a network namespace: %w", err)
	}
	return false, f(inode(stat.Ino))
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
func eachPath(yield func(path string)) error {
	for _, pid := range []string{"self", "1"} {
		err := eachMount(filepath.Join("/proc", pid), yield)
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
			yield(filepath.Join("/proc", name, "ns/net"))
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
