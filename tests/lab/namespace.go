package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where `ip netns` looks for named network namespaces.
const netnsDir = "/run/netns"

// Namespace is a named network namespace: a host, a node or a pod of the lab.
type Namespace struct {
	Name string // as `ip netns` shows it

	handle netns.NsHandle
	links  *netlink.Handle
}

// newNamespace makes a network namespace with its loopback device up.
func newNamespace(name string) (*Namespace, error) {
	handle, err := createNamed(name)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", name, err)
	}
	links, err := netlink.NewHandleAt(handle, unix.NETLINK_ROUTE)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("open netlink in %s: %w", name, err)
	}
	n := &Namespace{Name: name, handle: handle, links: links}
	return n, n.configure()
}

// createNamed makes the namespace and leaves the calling thread where it was.
func createNamed(name string) (netns.NsHandle, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	origin, err := netns.Get()
	if err != nil {
		return -1, err
	}
	defer origin.Close()
	handle, err := netns.NewNamed(name)
	if err != nil {
		return -1, errors.Join(err, netns.Set(origin))
	}
	return handle, netns.Set(origin)
}

// configure brings loopback up, and makes addresses usable at once.
func (n *Namespace) configure() error {
	settings := map[string]string{
		"net/ipv6/conf/all/accept_dad":       "0",
		"net/ipv6/conf/default/accept_dad":   "0",
		"net/ipv6/conf/default/accept_ra":    "0",
		"net/ipv4/conf/default/rp_filter":    "0",
		"net/ipv4/conf/all/rp_filter":        "0",
		"net/ipv4/conf/all/send_redirects":   "0",
		"net/ipv4/conf/default/log_martians": "0",
		"net/core/somaxconn":                 "511", // what servers ask for; Go asks for all it can get
	}
	for name, value := range settings {
		if err := n.Sysctl(name, value); err != nil {
			return err
		}
	}
	loopback, err := n.links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo in %s: %w", n.Name, err)
	}
	return n.links.LinkSetUp(loopback)
}

// Do runs f with the calling goroutine's thread inside the namespace. Sockets that f makes belong to the
// namespace for good; goroutines that f starts do not run in it.
func (n *Namespace) Do(f func() error) (err error) {
	runtime.LockOSThread()
	origin, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer origin.Close()
	if err := netns.Set(n.handle); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", n.Name, err)
	}
	defer func() {
		if back := netns.Set(origin); back != nil {
			// The thread stays locked, and ends with this goroutine: nobody else runs in the wrong place.
			err = errors.Join(err, fmt.Errorf("leave %s: %w", n.Name, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// Sysctl writes a setting, named by its path under /proc/sys.
func (n *Namespace) Sysctl(path, value string) error {
	err := n.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0)
	})
	if err != nil {
		return fmt.Errorf("set %s in %s: %w", path, n.Name, err)
	}
	return nil
}

// Start starts a command inside the namespace.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if err := n.Do(cmd.Start); err != nil {
		return fmt.Errorf("start %s in %s: %w", cmd.Path, n.Name, err)
	}
	return nil
}

// Run runs a command inside the namespace, with input on its standard input, and returns what it prints.
func (n *Namespace) Run(input string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var output strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &output, &output
	if err := n.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return output.String(), fmt.Errorf("%s %s in %s: %w: %s", name, strings.Join(args, " "), n.Name, err, output.String())
	}
	return output.String(), nil
}

// Link returns the device of that name.
func (n *Namespace) Link(name string) (netlink.Link, error) {
	link, err := n.links.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s in %s: %w", name, n.Name, err)
	}
	return link, nil
}

// close removes the namespace. Everything in it goes when the last process and socket has left it.
func (n *Namespace) close() error {
	n.links.Close()
	return errors.Join(n.handle.Close(), deleteNamed(n.Name))
}

// deleteNamed removes the name, and with it the namespace where nothing else holds it. A missing name is fine.
func deleteNamed(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
