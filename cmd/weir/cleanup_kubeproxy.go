package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/weir-lb/weir/controlplane/kubeproxy"
)

// cleanupKubeProxy removes kube-proxy's rules, and says what that was. Somebody must be serving in its place.
func cleanupKubeProxy(out io.Writer, bpffs string) error {
	agent, err := readAgent(pinsDir(bpffs))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !agent.Running || agent.Snapshot == nil || !agent.Sync.Synced {
		return errors.New("no agent is serving here in kube-proxy's place: start weir agent, and wait until weir status says that it is healthy")
	}
	result, err := kubeproxy.Remove()
	for _, what := range result.Removed {
		fmt.Fprintln(out, "removed", what)
	}
	for _, what := range result.Left {
		fmt.Fprintln(out, "left", what)
	}
	if err == nil && len(result.Removed)+len(result.Left) == 0 {
		fmt.Fprintln(out, "kube-proxy has left nothing here")
	}
	return err
}

// releaseKubeProxy removes what was left for connections that kube-proxy has translated, unless they go on.
func releaseKubeProxy(out io.Writer) error {
	kept, removed, err := kubeproxy.Release()
	for _, what := range removed {
		fmt.Fprintln(out, "removed", what)
	}
	if kept > 0 {
		fmt.Fprintf(out, "left table inet weir-keep: %d connections that kube-proxy has translated need it\n", kept)
	}
	return err
}
