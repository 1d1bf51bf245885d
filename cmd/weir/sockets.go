package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/loader"
)

// hostNetNS returns the cookie of the one network namespace whose sockets are served; 0: those of all.
func (c agentConfig) hostNetNS() (uint64, error) {
	if c.socketLB != "host" {
		return 0, nil
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(socket)
	cookie, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read the network namespace's cookie: %w: --socket-lb host needs Linux 5.14; use all or off", err)
	}
	return cookie, nil
}

// attachSockets puts the socket edge on its cgroup, or takes it off where it shall not be.
func (d *daemon) attachSockets(pins string) error {
	edge := status.Sockets{Whose: d.config.socketLB}
	defer func() { d.board.Change(func(s *status.Snapshot) { s.Sockets = edge }) }()
	if edge.Whose == "off" {
		_, err := loader.DetachSockets(pins)
		return err
	}
	root := d.config.cgroupRoot
	if root == "" {
		var err error
		if root, err = findCgroupRoot(); err != nil {
			return err
		}
	}
	changed, err := d.programs.AttachSockets(pins, root)
	if err != nil {
		return err
	}
	edge.Cgroup = root
	d.log.Info("sockets are served", zap.String("cgroup", root), zap.String("whose", d.config.socketLB), zap.Int("changed", changed))
	if !d.features.SetRetval {
		edge.Reasons = []string{"what is refused at connect() fails with EPERM: the kernel has no bpf_set_retval (Linux 5.18)"}
	}
	return nil
}

// findCgroupRoot returns where cgroup v2 is mounted, on unified and on hybrid hosts.
func findCgroupRoot() (string, error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.Join(errors.New("no cgroup v2 is mounted: mount it, name it with --cgroup-root, or use --socket-lb off"), lines.Err())
}
