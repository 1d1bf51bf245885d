package e2e

import (
	"fmt"
	"syscall"

	"github.com/weir-lb/weir/tests/lab"
)

// proxyToken is that of the user who the built-in role system:node-proxier is for.
const proxyToken = "kube-proxy-of-the-lab"

// KubeProxy is the real kube-proxy, on a node.
type KubeProxy struct {
	host    *lab.Host
	process *process
}

// NewKubeProxy prepares a kube-proxy in mode iptables or nftables.
func (c *ControlPlane) NewKubeProxy(host *lab.Host, mode string) (*KubeProxy, error) {
	kubeconfig, err := c.Kubeconfig("kube-proxy", proxyToken, c.URL())
	if err != nil {
		return nil, err
	}
	k := &KubeProxy{host: host}
	k.process = c.process("kube-proxy", "--kubeconfig", kubeconfig, "--proxy-mode", mode, "--hostname-override", host.Role,
		"--cluster-cidr", "10.1.0.0/16,fd00:10:1::/48", "--detect-local-mode", "ClusterCIDR",
		// Those are the whole machine's.
		"--conntrack-max-per-core", "0", "--oom-score-adj", "0")
	k.process.host = host
	k.process.log = c.file("kube-proxy-" + mode + ".log")
	return k, nil
}

// Start starts it.
func (k *KubeProxy) Start() error { return k.process.start() }

// Stop ends it as a kubelet does. Its rules stay.
func (k *KubeProxy) Stop() error { return k.process.stop(syscall.SIGTERM) }

// Tail returns the last lines of its log.
func (k *KubeProxy) Tail() string { return k.process.tail() }

// PID returns the number of its process.
func (k *KubeProxy) PID() int { return k.process.pid() }

// Healthy is an error unless it says that its rules are as the Services are.
func (k *KubeProxy) Healthy() error {
	if err := k.process.running(); err != nil {
		return err
	}
	if output, err := k.host.Run("", "curl", "-sSf", "--max-time", "2", "http://127.0.0.1:10256/healthz"); err != nil {
		return fmt.Errorf("kube-proxy is not healthy: %w: %s", err, output)
	}
	return nil
}
