package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/namespaces"
	"github.com/weir-lb/weir/controlplane/sockets"
	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/loader"
)

// socketRetry is the pause between two tries to attach the socket edge.
const socketRetry = 10 * time.Second

// nodeNetNS returns the cookie of the network namespace that the agent is in. 0: the kernel tells none.
func (c agentConfig) nodeNetNS() (uint64, error) {
	cookie, err := namespaces.Cookie()
	if err == nil || c.socketLB != "host" {
		return cookie, nil
	}
	return 0, fmt.Errorf("%w: --socket-lb host needs Linux 5.14; use all or off", err)
}

// makeSockets makes what knows the network namespaces, and puts the socket edge on its cgroup or takes it off. That there
// is no place for it is no reason not to start, unless the operator has named one.
func (d *daemon) makeSockets() error {
	d.edge = status.Sockets{Whose: d.config.socketLB}
	defer d.postSockets()
	if d.config.cgroupRoot != "" {
		if err := loader.CheckCgroup(d.config.cgroupRoot); err != nil {
			return err
		}
	}
	root, err := d.cgroupRoot()
	if failed := d.makeNamespaces(root); failed != nil {
		return failed
	}
	if d.config.socketLB == "off" {
		_, err := loader.DetachSockets(pinsDir(d.config.bpffs))
		return err
	}
	d.makeCloser()
	if err == nil {
		err = d.attachSockets(root)
	}
	if err != nil {
		d.log.Error("the socket edge serves nobody", zap.Error(err))
		d.edge.Reasons = []string{err.Error()}
	}
	return nil
}

// makeNamespaces makes what knows the network namespaces, where the kernel tells them apart.
func (d *daemon) makeNamespaces(cgroupRoot string) (err error) {
	if d.nodeNetNS == 0 {
		return nil
	}
	d.namespaces, err = namespaces.New(namespaces.Options{
		Set: d.set, Log: d.log, CgroupRoot: cgroupRoot, Changed: func() { wake(d.changed) },
		ClusterIP: d.controller.ClusterIP,
	})
	return err
}

// makeCloser makes what closes sockets of removed backends.
func (d *daemon) makeCloser() {
	if d.namespaces == nil {
		return
	}
	var err error
	if d.kernel, err = loader.NewSockets(d.set); err != nil {
		d.log.Warn("UDP sockets of removed backends stay open", zap.Error(err))
		return
	}
	d.closer = sockets.New(sockets.Options{Kernel: d.kernel, Visit: d.namespaces.Visit, Services: d.controller, Log: d.log})
}

// backendsLeft says that backends have left services whose flows end then. It is called first when the maps hold all.
func (d *daemon) backendsLeft() {
	select {
	case <-d.synced:
	default:
		close(d.synced)
	}
	d.sweeper.Touch()
	if d.closer != nil {
		d.closer.Touch()
	}
}

// cgroupRoot returns the cgroup whose sockets are served.
func (d *daemon) cgroupRoot() (string, error) {
	if d.config.cgroupRoot != "" {
		return d.config.cgroupRoot, nil
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	defer mounts.Close()
	return findCgroupRoot(mounts)
}

// attachSockets puts the socket edge on a cgroup.
func (d *daemon) attachSockets(root string) error {
	changed, err := d.programs.AttachSockets(pinsDir(d.config.bpffs), root)
	if err != nil {
		return err
	}
	d.edge.Cgroup, d.edge.Reasons = root, nil
	if !d.features.SetRetval {
		d.edge.Reasons = append(d.edge.Reasons, "what is refused at connect() fails with EPERM: the kernel has no bpf_set_retval (Linux 5.18)")
	}
	if d.nodeNetNS == 0 {
		d.edge.Reasons = append(d.edge.Reasons, "all pods are served, also those that ask for socket-lb off: the kernel tells no network namespaces apart (Linux 5.14)")
	}
	if d.closer == nil {
		d.edge.Reasons = append(d.edge.Reasons, "UDP sockets of removed backends stay open: "+loader.ErrNoListing.Error())
	}
	d.log.Info("sockets are served", zap.String("cgroup", root), zap.String("whose", d.config.socketLB), zap.Int("changed", changed))
	return nil
}

// postSockets tells what the socket edge serves.
func (d *daemon) postSockets() {
	edge := d.edge
	d.board.Change(func(s *status.Snapshot) {
		edge.Closed = s.Sockets.Closed
		s.Sockets = edge
	})
}

// retrySockets attaches the socket edge as soon as that can be done, where it could not before.
func (d *daemon) retrySockets(ctx context.Context) error {
	for d.config.socketLB != "off" && d.edge.Cgroup == "" {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(socketRetry):
		}
		root, err := d.cgroupRoot()
		if err == nil {
			err = d.attachSockets(root)
		}
		if err != nil {
			d.edge.Reasons = []string{err.Error()}
		}
		d.postSockets()
	}
	<-ctx.Done()
	return nil
}

// followPods tells the registry of network namespaces which pods there are.
func (d *daemon) followPods(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.store.PodsChanged():
		}
		all, namespaces := d.store.Pods()
		pods, problems := compile.Pods(all, namespaces, d.config.nodeName)
		d.podProblems.Store(&problems)
		if d.namespaces != nil {
			d.namespaces.SetPods(pods)
		}
		wake(d.changed)
	}
}

// socketProblems lists what is wrong with pods and network namespaces.
func (d *daemon) socketProblems() []compile.Problem {
	var problems []compile.Problem
	if of := d.podProblems.Load(); of != nil {
		problems = append(problems, *of...)
	}
	if d.namespaces != nil {
		problems = append(problems, d.namespaces.Problems()...)
	}
	return problems
}

// findCgroupRoot reads from mountinfo where cgroup v2 is mounted, on unified and on hybrid hosts: the whole of it where
// that is mounted anywhere.
func findCgroupRoot(mountinfo io.Reader) (string, error) {
	found := ""
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		// id, parent, device, root, mount point, ... - type: proc_pid_mountinfo(5)
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		if point := strings.ReplaceAll(fields[4], `\040`, " "); found == "" || fields[3] == "/" {
			found = point
		}
		if fields[3] == "/" {
			break
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	if found == "" {
		return "", errors.New("no cgroup v2 is mounted: mount it, name it with --cgroup-root, or use --socket-lb off")
	}
	return found, nil
}
