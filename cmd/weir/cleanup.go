package main

import (
	"errors"
	"fmt"
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
			removed, err := cleanup(bpffs)
			for _, line := range removed {
				fmt.Fprintln(c.OutOrStdout(), line)
			}
			return errors.Join(err, releaseKubeProxy(c.OutOrStdout()))
		}),
	}
	bpffsFlag(c, &bpffs)
	c.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove kube-proxy's netfilter rules instead; connections that it has translated go on")
	return c
}

// cleanup removes everything, and returns what that was. Where there is nothing, nothing is made to be locked.
func cleanup(bpffs string) (removed []string, err error) {
	pins := pinsDir(bpffs)
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(pins); errors.Is(err, fs.ErrNotExist) {
		return detach(pins)
	}
	lock, err := lockPins(pins)
	if err != nil {
		return nil, err
	}
	defer lock.Release()
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
