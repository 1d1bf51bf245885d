package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/tests/lab"
)

// Capabilities are those of the DaemonSet in deploy/kustomize, as setpriv names them.
var Capabilities = []string{"bpf", "perfmon", "net_admin", "sys_admin", "sys_resource"}

// Agent is the weir binary on a node.
type Agent struct {
	Node  string // its name in the cluster
	Log   string
	host  *lab.Host
	weir  string
	BPFFS string
	args  []string

	process *process
}

// NewAgent prepares an agent. It has a bpffs of its own, and of root's capabilities those of the DaemonSet alone.
func NewAgent(l *lab.Lab, host *lab.Host, weir, kubeconfig string, args ...string) (*Agent, error) {
	a := &Agent{Node: host.Role, host: host, weir: weir, BPFFS: filepath.Join(l.Dir, "bpf-"+host.Role), Log: filepath.Join(l.Dir, host.Role+".log")}
	if err := os.MkdirAll(a.BPFFS, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("bpf", a.BPFFS, "bpf", 0, ""); err != nil {
		return nil, fmt.Errorf("mount bpffs on %s: %w", a.BPFFS, err)
	}
	a.args = append([]string{
		"setpriv", "--bounding-set=-all,+" + strings.Join(Capabilities, ",+"), "--inh-caps=-all", "--",
		weir, "agent", "--kubeconfig", kubeconfig, "--node-name", a.Node, "--bpffs", a.BPFFS,
	}, args...)
	a.process = &process{host: host, args: a.args, log: a.Log}
	return a, nil
}

// With returns the agent with other values of some flags, and more of them. Only one of both can run.
func (a *Agent) With(values map[string]string, more ...string) *Agent {
	other := &Agent{Node: a.Node, Log: a.Log, host: a.host, weir: a.weir, BPFFS: a.BPFFS, args: slices.Clone(a.args)}
	for i, argument := range other.args[:len(other.args)-1] {
		if value, is := values[argument]; is {
			other.args[i+1] = value
		}
	}
	other.args = append(other.args, more...)
	other.process = &process{host: a.host, args: other.args, log: a.Log}
	return other
}

// Start starts the agent.
func (a *Agent) Start() error { return a.process.start() }

// Stop ends the agent as a kubelet does.
func (a *Agent) Stop() error { return a.process.stop(syscall.SIGTERM) }

// Kill ends the agent without a chance to do anything.
func (a *Agent) Kill() error { return a.process.stop(syscall.SIGKILL) }

// Remove ends the agent, and removes what it has put on the machine.
func (a *Agent) Remove() error {
	if err := a.Stop(); err != nil {
		return err
	}
	if _, err := a.CLI("cleanup"); err != nil {
		return err
	}
	return unix.Unmount(a.BPFFS, unix.MNT_DETACH)
}

// CLI runs a command of the binary.
func (a *Agent) CLI(args ...string) (string, error) {
	return a.host.Run("", a.weir, append(args, "--bpffs", a.BPFFS)...)
}

// Status is what tests read of `weir status -o json`.
type Status struct {
	Healthy bool     `json:"healthy"`
	Reasons []string `json:"reasons"`
	Agent   struct {
		Problems []struct {
			Object, Reason, Message string
		} `json:"problems"`
		Errors []struct {
			Message string
		} `json:"errors"`
		Sockets struct {
			Whose, Cgroup string
		} `json:"sockets"`
		Sync struct {
			Synced    bool          `json:"synced"`
			Last      time.Time     `json:"last"`
			Latency   time.Duration `json:"latencyNanoseconds"`
			Frontends int           `json:"frontends"`
			Writes    uint64        `json:"writes"`
		} `json:"sync"`
	} `json:"agent"`
}

// Status asks the agent.
func (a *Agent) Status() (Status, error) {
	var status Status
	output, err := a.CLI("status", "-o", "json")
	if err != nil {
		return status, err
	}
	return status, json.Unmarshal([]byte(output), &status)
}

// Healthy is an error unless the agent says that all is well.
func (a *Agent) Healthy() error {
	if err := a.process.running(); err != nil {
		return err
	}
	status, err := a.Status()
	if err == nil && !status.Healthy {
		err = fmt.Errorf("the agent of %s is not healthy: %q", a.Node, status.Reasons)
	}
	return err
}

// PID returns the number of its process.
func (a *Agent) PID() int { return a.process.pid() }

// Tail returns the last lines of the agent's log.
func (a *Agent) Tail() string { return a.process.tail() }
