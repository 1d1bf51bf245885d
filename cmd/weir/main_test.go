package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestMain makes the test binary weir itself where a script runs weir.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"weir": main})
}

const (
	// patience is how long scripts wait for an agent to do something.
	patience = 20 * time.Second
	// overdue is when a command is ended that shall end by itself: an agent that starts where it should refuse.
	overdue = 2 * time.Minute
)

// TestScripts runs testdata/*.txtar: weir as a person calls it. In each script
//
//	node CMD...          runs a command on a node of the script's own
//	await REGEXP CMD...  runs a command until it prints what matches
//	exits N CMD...       expects an exit status; what was printed is then in the files out and err
func TestScripts(t *testing.T) {
	needRoot(t)
	testscript.Run(t, testscript.Params{
		Dir:   "testdata",
		Setup: setupScript,
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"await": await, "exits": exits},
	})
}

// needRoot skips a test that makes network namespaces and loads programs.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: this test makes network namespaces and loads BPF programs")
	}
}

// setupScript gives a script its node.
func setupScript(env *testscript.Env) error {
	n, err := newNode(env.WorkDir)
	if err != nil {
		return err
	}
	env.Defer(n.end)
	env.Setenv("PATH", n.bin+string(os.PathListSeparator)+env.Getenv("PATH"))
	return nil
}

// node is a process that does nothing in namespaces of its own: of the network, with a device eth0, and of mounts,
// with nothing under /sys/fs/bpf and /run. All of it goes with the process, and the process with this one.
type node struct {
	holder *exec.Cmd
	bin    string // the directory of the script `node`
}

// nodeSetup is what is done on a new node.
const nodeSetup = `
set -e
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link add eth0 type veth peer name wire0
ip addr add 192.0.2.1/24 dev eth0
ip addr add 2001:db8::1/64 dev eth0 nodad
ip link set eth0 up
ip link set wire0 up
`

// newNode makes a node, and a script in dir/bin that runs commands on it.
func newNode(dir string) (*node, error) {
	n := &node{holder: exec.Command("sleep", "infinity"), bin: filepath.Join(dir, "bin")}
	n.holder.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := n.holder.Start(); err != nil {
		return nil, fmt.Errorf("start a node: %w", err)
	}
	if err := n.writeScript(); err != nil {
		n.end()
		return nil, err
	}
	if output, err := n.command("sh", "-c", nodeSetup).CombinedOutput(); err != nil {
		n.end()
		return nil, fmt.Errorf("set up a node: %w: %s", err, output)
	}
	return n, nil
}

// writeScript writes the script `node`. It lets another process do it: a file that this one has open for writing may be
// so in a child that is just being started elsewhere, too, and then cannot be executed.
func (n *node) writeScript() error {
	write := exec.Command("sh", "-c", `mkdir -p "$0" && cat >"$0/node" && chmod +x "$0/node"`, n.bin)
	write.Stdin = strings.NewReader(fmt.Sprintf(
		"#!/bin/sh\nexec setpriv --pdeathsig KILL nsenter --target %d --net --mount --wd=\"$PWD\" -- \"$@\"\n",
		n.holder.Process.Pid))
	if output, err := write.CombinedOutput(); err != nil {
		return fmt.Errorf("write a script: %w: %s", err, output)
	}
	return nil
}

// command returns a command that will run on the node.
func (n *node) command(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(n.bin, "node"), args...)
}

// path returns where a file of the node is seen from here.
func (n *node) path(file string) string {
	return filepath.Join("/proc", strconv.Itoa(n.holder.Process.Pid), "root", file)
}

// end removes the node.
func (n *node) end() {
	if err := n.holder.Process.Kill(); err == nil {
		_ = n.holder.Wait() // it was killed
	}
}

// await is a command of scripts.
func await(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: await REGEXP CMD...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		output, _ := scriptCommand(ts, args[1:]).CombinedOutput()
		if pattern.Match(output) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s has not printed %q but:\n%s", strings.Join(args[1:], " "), args[0], output)
		}
	}
}

// exits is a command of scripts. A failure must be told in one line.
func exits(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS CMD...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	var stdout, stderr bytes.Buffer
	command := scriptCommand(ts, args[1:])
	command.Stdout, command.Stderr = &stdout, &stderr
	ts.Check(command.Start())
	killer := time.AfterFunc(overdue, func() { _ = command.Process.Kill() }) // a status that is not wanted follows
	err = command.Wait()
	killer.Stop()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	ts.Check(os.WriteFile(ts.MkAbs("out"), stdout.Bytes(), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("err"), stderr.Bytes(), 0o644))
	if got := command.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit status %d, want %d; it says:\n%s%s", got, want, stdout.String(), stderr.String())
	}
	lines := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
	if last := lines[len(lines)-1]; want != exitFine && (!strings.HasPrefix(last, "weir: ") || want == exitUsage && len(lines) > 1) {
		ts.Fatalf("it failed, and its last line is %q", last)
	}
}

// scriptCommand returns a command in the environment of a script.
func scriptCommand(ts *testscript.TestScript, args []string) *exec.Cmd {
	path := ts.Getenv("PATH")
	command := exec.Command("/usr/bin/env", append([]string{"PATH=" + path}, args...)...)
	command.Dir = ts.MkAbs(".")
	return command
}
