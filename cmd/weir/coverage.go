package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	// coverageCommand makes the binary the process that connects.
	coverageCommand = "connect-to-socket-edge"
	// coverageLimit bounds what that takes.
	coverageLimit = 3 * time.Second
)

// coverageView is whether the socket edge is where it should be, as a connect from another cgroup has found.
type coverageView struct {
	Proven bool   `json:"proven"`
	Cgroup string `json:"cgroup"`           // that the connect came from
	Reason string `json:"reason,omitempty"` // why not proven
	Failed bool   `json:"-"`                // the connect was made, and met no program of ours
}

// proveCoverage connects a socket from a cgroup of its own below the root, and sees whether the hooks answer.
func proveCoverage(root string) *coverageView {
	view := &coverageView{Cgroup: filepath.Join(root, fmt.Sprintf("weir-status-%d", os.Getpid()))}
	errno, err := connectFrom(view.Cgroup)
	switch {
	case err != nil:
		view.Reason = "not tried: " + err.Error()
	case errno == unix.ECONNREFUSED || errno == unix.EPERM: // EPERM: before Linux 5.18
		view.Proven = true
	default:
		view.Failed = true
		view.Reason = "a connect from there met no program of Weir's: start the agent again, which attaches them"
	}
	return view
}

// connectFrom makes a cgroup, has a process in it connect, and returns how that failed; 0: it did not.
func connectFrom(cgroup string) (errno syscall.Errno, err error) {
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return 0, fmt.Errorf("make a cgroup: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(cgroup)) }()
	dir, err := os.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(context.Background(), coverageLimit)
	defer cancel()
	child := exec.CommandContext(ctx, "/proc/self/exe", coverageCommand)
	child.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	var said bytes.Buffer
	child.Stdout = &said
	if err := child.Run(); err != nil {
		return 0, fmt.Errorf("start a process in it: %w", err)
	}
	number, err := strconv.Atoi(strings.TrimSpace(said.String()))
	return syscall.Errno(number), err
}

// newCoverage returns the command that is the process in the other cgroup.
func newCoverage() *cobra.Command {
	return &cobra.Command{
		Use: coverageCommand, Hidden: true, Args: cobra.NoArgs,
		RunE: doing(func(c *cobra.Command, _ []string) error {
			errno, err := connectToSocketEdge()
			if err == nil {
				fmt.Fprintln(c.OutOrStdout(), int(errno))
			}
			return err
		}),
	}
}

// connectToSocketEdge connects to where nobody can be, which the hooks alone refuse (bpf/socket.h).
func connectToSocketEdge() (syscall.Errno, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(socket)
	var errno syscall.Errno
	err = unix.Connect(socket, &unix.SockaddrInet4{Addr: [4]byte{0, 0, 0, 1}, Port: 1})
	if err != nil && !errors.As(err, &errno) {
		return 0, err
	}
	return errno, nil
}
