package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/status"
)

// readyLimit bounds how long an agent may take to serve what it was given, on a machine that has much else to do.
const readyLimit = time.Minute

// bpffsName is where in its directory an agent has its bpffs.
const bpffsName = "bpf"

// Agent is the weir binary on a node, with a bpffs of its own. The manifests directory is the lab's.
type Agent struct {
	Binary    string
	Node      *Host
	BPFFS     string // where it pins
	Manifests string // what it watches
	Log       string // what it has printed, over all its lives
	Args      []string

	lab *Lab

	mu      sync.Mutex
	process *exec.Cmd
	ended   chan error // receives how the process ended
}

// NewAgent prepares an agent for node1: mounts its bpffs and writes the Node object. Start starts it.
func (l *Lab) NewAgent(binary string, args ...string) (*Agent, error) {
	return l.NewAgentOn(l.Node1, binary, args...)
}

// NewAgentOn is NewAgent for any node.
func (l *Lab) NewAgentOn(node *Host, binary string, args ...string) (*Agent, error) {
	dir := filepath.Join(l.Dir, node.Role)
	a := &Agent{
		Binary:    binary,
		Node:      node,
		BPFFS:     filepath.Join(dir, bpffsName),
		Manifests: filepath.Join(l.Dir, "manifests"),
		Log:       filepath.Join(dir, "agent.log"),
		Args:      args,
		lab:       l,
	}
	for _, dir := range []string{a.BPFFS, a.Manifests} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount("bpf", a.BPFFS, "bpf", 0, ""); err != nil {
		return nil, fmt.Errorf("mount bpffs on %s: %w", a.BPFFS, err)
	}
	l.onClose(func() error { return unix.Unmount(a.BPFFS, unix.MNT_DETACH) })
	l.onClose(a.end)
	sources := ""
	if takesPartInDSR(args) {
		var err error
		if sources, err = node.tunnelSources(); err != nil {
			return nil, fmt.Errorf("read the addresses of %s: %w", node.Role, err)
		}
	}
	object, err := NodeYAML(node, ZoneOf(node), sources)
	if err != nil {
		return nil, err
	}
	return a, a.Write(node.Role, object)
}

// Start starts the agent and returns at once.
func (a *Agent) Start() error {
	log, err := os.OpenFile(a.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"agent", "--manifests", a.Manifests, "--node-name", a.Node.Role, "--bpffs", a.BPFFS}
	// Unless told so: the sockets of a lab without cgroups are in those of the whole machine.
	args = append(args, "--socket-lb", "off")
	if a.Node.cgroup != "" {
		args = append(args, "--cgroup-root", filepath.Dir(a.Node.cgroup))
	}
	args = append(args, a.Args...)
	process := exec.Command(a.Binary, args...)
	process.Stdout, process.Stderr = log, log
	// An interrupt from a terminal is for those who drive the agent.
	process.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := a.Node.Start(process); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.process, a.ended = process, ended
	return nil
}

// Signal sends the agent a signal and waits for its end. It returns how the process ended.
func (a *Agent) Signal(signal os.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.running(); err != nil {
		return err
	}
	if err := a.process.Process.Signal(signal); err != nil {
		return fmt.Errorf("signal the agent: %w", err)
	}
	defer func() { a.process = nil }()
	select {
	case err := <-a.ended:
		return err
	case <-time.After(readyLimit):
		return errors.Join(fmt.Errorf("the agent does not end on %s", signal), a.process.Process.Kill())
	}
}

// Terminate ends the agent as a service manager does, and expects it to say that all is well.
func (a *Agent) Terminate() error { return a.Signal(unix.SIGTERM) }

// Kill ends the agent without a chance to do anything.
func (a *Agent) Kill() error {
	var exit *exec.ExitError
	if err := a.Signal(unix.SIGKILL); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

// Running says whether the process lives; if not, how it ended.
func (a *Agent) Running() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running()
}

// running is Running for callers who hold the lock.
func (a *Agent) running() error {
	if a.process == nil {
		return errors.New("the agent does not run")
	}
	select {
	case err := <-a.ended:
		a.ended <- err
		return fmt.Errorf("the agent ended: %w; its log: %s", err, a.LogTail())
	default:
		return nil
	}
}

// end stops the agent where it runs, and removes everything it has put on the machine.
func (a *Agent) end() error {
	a.mu.Lock()
	runs := a.process != nil
	a.mu.Unlock()
	var err error
	if runs {
		err = a.Terminate()
	}
	_, cleanup := a.CLI("cleanup")
	return errors.Join(err, cleanup)
}

// CLI runs a command of the binary on the agent's node, with its bpffs, and returns what it prints.
func (a *Agent) CLI(args ...string) (string, error) {
	return a.Node.Run("", a.Binary, append(args, "--bpffs", a.BPFFS)...)
}

// WaitHealthy waits until the agent says that all is well.
func (a *Agent) WaitHealthy() error {
	if err := a.waitSynced(); err != nil {
		return err
	}
	return a.wait(func() error {
		output, err := a.CLI("status", "-o", "json")
		if err != nil {
			return err
		}
		var said struct {
			Healthy bool     `json:"healthy"`
			Reasons []string `json:"reasons"`
		}
		if err := json.Unmarshal([]byte(output), &said); err != nil {
			return fmt.Errorf("decode what weir status says: %w", err)
		}
		if !said.Healthy {
			return fmt.Errorf("the agent is not healthy: %q", said.Reasons)
		}
		return nil
	})
}

// waitSynced waits until the agent has served what it was given once. It is cheaper than to run the binary again and again,
// which takes the CPU from the agent.
func (a *Agent) waitSynced() error {
	return a.wait(func() error {
		said, err := status.Read(filepath.Join(a.BPFFS, "weir"))
		if err == nil && (said.PID != a.pid() || !said.Sync.Synced) {
			err = errors.New("the agent has not served what it was given")
		}
		return err
	})
}

// pid returns the id of the agent's process; 0 where none runs.
func (a *Agent) pid() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.process == nil {
		return 0
	}
	return a.process.Process.Pid
}

// Write puts a manifest into the watched directory, whole: the agent never sees half of it.
func (a *Agent) Write(name, content string) error {
	partial := filepath.Join(a.lab.Dir, name+".partial")
	if err := os.WriteFile(partial, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(partial, a.path(name))
}

// Delete takes a manifest away.
func (a *Agent) Delete(name string) error { return os.Remove(a.path(name)) }

// path is where a manifest lies.
func (a *Agent) path(name string) string { return filepath.Join(a.Manifests, name+".yaml") }

// LogTail returns the last lines that the agent printed.
func (a *Agent) LogTail() string {
	log, err := os.ReadFile(a.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// poll calls f until it is content or the time is over, and then returns what f last said.
func poll(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}
