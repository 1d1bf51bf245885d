package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/weir-lb/weir/tests/e2e"
	"github.com/weir-lb/weir/tests/lab"
)

// binaries is where `make e2e-binaries` puts the control plane.
const binaries = "../../.cache/kubernetes"

// cluster is what all tests share: set once, before the first.
var cluster struct {
	*e2e.ControlPlane
	lab    *lab.Lab
	weir   string
	agents []*e2e.Agent // of node1 and node2
}

func TestMain(m *testing.M) {
	lab.RunHelper()
	if os.Geteuid() != 0 {
		fmt.Println("end-to-end tests make network namespaces and load BPF programs: skipped, as this is not root")
		os.Exit(0)
	}
	if _, err := os.Stat(filepath.Join(binaries, "kube-apiserver")); err != nil {
		fmt.Println("no control plane is built: skipped; make e2e builds one first")
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// run runs the tests on a cluster of two nodes.
func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "weir-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if cluster.weir, err = buildWeir(dir); err != nil {
		return 1, err
	}
	session, err := lab.Open()
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, session.Close()) }()
	if err := startCluster(session); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, stopCluster()) }()
	return m.Run(), nil
}

// buildWeir builds the binary, unless WEIR_BINARY names one.
func buildWeir(dir string) (string, error) {
	if path := os.Getenv("WEIR_BINARY"); path != "" {
		return filepath.Abs(path)
	}
	path := filepath.Join(dir, "weir")
	build := exec.Command("go", "build", "-o", path, "github.com/weir-lb/weir/cmd/weir")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build weir: %w: %s", err, output)
	}
	return path, nil
}

// startCluster starts a control plane, gives it what deploy/kustomize has, and starts the agents.
func startCluster(session *lab.Session) (err error) {
	if cluster.lab, err = session.Build(lab.Options{Cgroups: true}); err != nil {
		return err
	}
	bin, err := filepath.Abs(binaries)
	if err != nil {
		return err
	}
	if cluster.ControlPlane, err = e2e.StartControlPlane(cluster.lab, bin); err != nil {
		return err
	}
	manifests, err := filepath.Abs("../../deploy/kustomize")
	if err != nil {
		return err
	}
	if _, err := cluster.Kubectl("", "apply", "--dry-run=server", "-k", manifests); err != nil {
		return fmt.Errorf("deploy/kustomize is not accepted: %w", err)
	}
	if _, err := cluster.Kubectl("", "apply", "-k", manifests); err != nil {
		return fmt.Errorf("deploy/kustomize cannot be applied: %w", err)
	}
	kubeconfig, err := cluster.AddNodes(context.Background(), cluster.lab.Node1, cluster.lab.Node2)
	if err != nil {
		return err
	}
	// Processes and pods of node1 are served by the socket edge, pods of node2 by the pod edge.
	edges := map[*lab.Host][]string{
		cluster.lab.Node1: {"--cgroup-root", cluster.lab.Node1.CgroupRoot()},
		cluster.lab.Node2: {"--socket-lb", "off"},
	}
	for _, node := range []*lab.Host{cluster.lab.Node1, cluster.lab.Node2} {
		args := append([]string{"--config", filepath.Join(manifests, "config.conf")}, edges[node]...)
		agent, err := e2e.NewAgent(cluster.lab, node, cluster.weir, kubeconfig, args...)
		if err != nil {
			return err
		}
		cluster.agents = append(cluster.agents, agent)
		if err := agent.Start(); err != nil {
			return err
		}
	}
	return nil
}

func stopCluster() error {
	var err error
	for _, agent := range cluster.agents {
		err = errors.Join(err, agent.Remove())
	}
	return errors.Join(err, cluster.Stop(), cluster.lab.Close())
}
