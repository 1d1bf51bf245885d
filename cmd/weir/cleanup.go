package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/devices"
	"github.com/weir-lb/weir/controlplane/masquerade"
	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/loader"
)

// newCleanup returns the command that leaves no trace.
func newCleanup() *cobra.Command {
	var bpffs string
	var kubeProxy bool
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Detach and unpin everything, leave no trace; flows end",
		Long: `Detach the programs from all devices of this network namespace, and unpin programs and maps. Every flow ends.
An agent must not be running. A bpffs that an agent has mounted stays mounted.

With --kube-proxy, remove what kube-proxy has left of netfilter rules in this network namespace, and nothing of Weir's. An
agent must be serving, kube-proxy must not be running. Connections that kube-proxy has translated go on.`,
		Args: cobra.NoArgs,
		RunE: doing(func(c *cobra.Command, _ []string) error {
			if kubeProxy {
				return cleanupKubeProxy(c.OutOrStdout(), bpffs)
			}
			return cleanupWeir(c.OutOrStdout(), bpffs)
		}),
	}
	bpffsFlag(c, &bpffs)
	c.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove kube-proxy's netfilter rules instead; connections that it has translated go on")
	return c
}

// cleanupWeir removes everything, and says what that was. Where that is refused, everything stays.
func cleanupWeir(out io.Writer, bpffs string) error {
	if err := checkCapabilities(); err != nil {
		return err
	}
	release, err := lockForCleanup(pinsDir(bpffs))
	if err != nil {
		return err
	}
	defer release()
	removed, err := cleanup(pinsDir(bpffs))
	for _, line := range removed {
		fmt.Fprintln(out, line)
	}
	return errors.Join(err, releaseKubeProxy(out))
}

// lockForCleanup takes the pins. Where there are none, nothing is made to be locked.
func lockForCleanup(pins string) (release func(), err error) {
	if _, err := os.Stat(pins); errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	lock, err := lockPins(pins)
	if err != nil {
		return nil, err
	}
	return func() { _ = lock.Release() }, nil
}

// cleanup removes everything of Weir's, and returns what that was.
func cleanup(pins string) (removed []string, err error) {
	last, known := status.Read(pins)
	if err := status.Remove(pins); err != nil {
		return nil, err
	}
	removed, err = detach(pins)
	if known == nil && last.Forwarding.Mode == forwardDSR {
		removed = append(removed, fmt.Sprintf("Node %s still says by its annotation %s that others may send it packets in tunnels: kubectl annotate node %s %s-",
			last.Node, compile.AnnotationDSR, last.Node, compile.AnnotationDSR))
	}
	return removed, err
}

// detach takes everything out of the kernel.
func detach(pins string) (removed []string, err error) {
	removed, err = loader.Cleanup(pins)
	rules, failed := masquerade.Remove()
	if rules {
		removed = append(removed, "removed the netfilter rules of --masquerade-all")
	}
	return removed, errors.Join(err, failed, devices.ForgetNeighbours())
}
