package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/weir-lb/weir/tests/lab"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("the demo makes network namespaces and loads BPF programs: skipped, as this is not root")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// build builds a program of this module.
func build(t *testing.T, what string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(what))
	if output, err := exec.Command("go", "build", "-o", path, "github.com/weir-lb/weir/"+what).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", what, err, output)
	}
	return path
}

// run runs the demo, and returns what it printed, its process id, and how it ended.
func run(t *testing.T, demo string, args ...string) (output string, pid int, err error) {
	t.Helper()
	cmd := exec.Command(demo, args...)
	var printed strings.Builder
	cmd.Stdout, cmd.Stderr = &printed, &printed
	err = cmd.Run()
	if cmd.Process == nil {
		t.Fatal(err)
	}
	return printed.String(), cmd.Process.Pid, err
}

// traces lists what a demo's lab has on the machine: network namespaces and directories.
func traces(t *testing.T, pid int) []string {
	t.Helper()
	namespaces, err := filepath.Glob("/run/netns/weir-" + strconv.Itoa(pid) + "-*")
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob("/run/weir-lab/" + strconv.Itoa(pid))
	if err != nil {
		t.Fatal(err)
	}
	return append(namespaces, dirs...)
}

// TestDemo runs the demo as `make demo` does: it ends well, shows every part, and leaves nothing. Then it runs it as
// `make demo KEEP=1` does, and removes what stays.
func TestDemo(t *testing.T) {
	t.Parallel()
	demo, weir := build(t, "tests/demo"), build(t, "cmd/weir")
	output, pid, err := run(t, demo, "-weir", weir)
	if err != nil {
		t.Fatalf("%v:\n%s", err, output)
	}
	for _, part := range []string{"ClusterIP", "NodePort", "LoadBalancer", "external IP", "Healthy", "default/shop:http/TCP/IPv6", `"port": `} {
		if !strings.Contains(output, part) {
			t.Errorf("the demo does not show %q:\n%s", part, output)
		}
	}
	if left := traces(t, pid); len(left) > 0 {
		t.Errorf("the demo leaves %v", left)
	}
	output, pid, err = run(t, demo, "-weir", weir, "-keep")
	if err != nil {
		t.Fatalf("%v:\n%s", err, output)
	}
	if !strings.Contains(output, "make demo-clean") || len(traces(t, pid)) == 0 {
		t.Errorf("the demo does not stay, or does not say how to remove it:\n%s", output)
	}
	if err := lab.Remove(strconv.Itoa(pid)); err != nil {
		t.Error(err)
	}
	if left := traces(t, pid); len(left) > 0 {
		t.Errorf("a lab that was kept and removed leaves %v", left)
	}
}

// TestDemoFails runs the demo with programs that balance nothing: it says so, and leaves nothing all the same.
func TestDemoFails(t *testing.T) {
	t.Parallel()
	demo := build(t, "tests/demo")
	sleeper := filepath.Join(t.TempDir(), "sleeper")
	if err := os.WriteFile(sleeper, []byte("#!/bin/sh\n[ \"$1\" != agent ] || exec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, weir := range []string{"/bin/true", sleeper} {
		output, pid, err := run(t, demo, "-weir", weir)
		if err == nil || !strings.Contains(output, "demo: ") {
			t.Errorf("with %s for weir the demo ends with %v:\n%s", weir, err, output)
		}
		if left := traces(t, pid); len(left) > 0 {
			t.Errorf("with %s for weir the demo leaves %v", weir, left)
		}
	}
}
