package packet

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// isolatedAs names the process that has a network namespace of its own, in its environment.
const isolatedAs = "WEIR_PACKET_NAMESPACE_OF"

// Isolate gives the process a network namespace of its own, by starting it anew inside one: every thread is
// then in it, and it ends with the process. It returns once that is so.
func Isolate() error {
	self := strconv.Itoa(os.Getpid())
	if os.Getenv(isolatedAs) == self {
		return nil
	}
	runtime.LockOSThread() // for good: this thread becomes the process
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace (run the tests as root): %w", err)
	}
	if err := os.Setenv(isolatedAs, self); err != nil {
		return err
	}
	return fmt.Errorf("start anew: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// newNamespace makes a second network namespace, and leaves the calling thread where it is.
func newNamespace() (netns.NsHandle, error) {
	var made netns.NsHandle
	err := keepNamespace(func() (err error) {
		made, err = netns.New()
		return err
	})
	if err != nil {
		return made, fmt.Errorf("make a network namespace: %w", err)
	}
	return made, nil
}

// within runs f in another network namespace. Sockets that f opens stay there.
func within(namespace netns.NsHandle, f func() error) error {
	return keepNamespace(func() error {
		if err := netns.Set(namespace); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// keepNamespace puts the calling thread back where it was before f.
func keepNamespace(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	origin, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer origin.Close()
	return errors.Join(f(), netns.Set(origin))
}
