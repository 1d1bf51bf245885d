package kernels

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

var (
	directory = flag.String("kernels", "../../.cache/kernels", "where packages of kernels have been unpacked, each to a directory of its own")
	one       = flag.String("package", "", "only this package's tests, as ./tests/packet")
	some      = flag.String("tests", ".", "a regular expression: which of the package's tests")
	limit     = flag.Duration("limit", 10*time.Minute, "how long a kernel's tests may take")
)

// suite is what is run of a package's tests.
type suite struct {
	pkg   string
	tests string
}

// suites meet what differs between kernels: verifier and helpers, how programs are attached, and what becomes of the
// packets that they leave to the stack.
func suites() []suite {
	if *one != "" {
		return []suite{{*one, *some}}
	}
	return []suite{
		{"./loader", "TestProbe|TestAttach|TestCleanup"},
		{"./tests/packet", "TestTunnel(Arrives|Sends|Cuts|Fragments)|TestX04ErrorTo|TestX05Fragments|TestX06|TestC05Known|TestWire"},
		{"./tests/lab", "TestFrontends/vlan/bare|TestX06Sockets/vlan/bare"},
	}
}

// TestKernels boots each kernel that is there, beginning with the one that the distribution has.
func TestKernels(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("only machines of amd64 are booted")
	}
	kernels, err := Kernels(*directory)
	if err != nil {
		t.Fatal(err)
	}
	if len(kernels) == 0 {
		t.Fatalf("no kernel is in %s: run make kernel-images", *directory)
	}
	guest := build(t, "build", "./tests/kernels/guest")
	script := writeScript(t)
	for _, kernel := range kernels {
		t.Run(kernel.Version, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), *limit)
			defer cancel()
			machine := Machine{Kernel: kernel, Guest: guest, Memory: 3072, CPUs: 1}
			status, err := machine.Run(ctx, t.TempDir(), os.Stdout, "bash", script)
			if err != nil || status != 0 {
				t.Errorf("exit status %d, %v", status, err)
			}
		})
	}
}

// writeScript builds the tests, writes a script that runs them all, and returns its name.
func writeScript(t *testing.T) string {
	t.Helper()
	var script strings.Builder
	fmt.Fprintf(&script, "export WEIR_BINARY=%s\nstatus=0\n", build(t, "build", "./cmd/weir"))
	verbose := ""
	if testing.Verbose() {
		verbose = "-test.v"
	}
	for _, suite := range suites() {
		where, err := filepath.Abs(filepath.Join("../..", suite.pkg))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&script, "cd %s && echo %s && %s -test.run '%s' -test.timeout %s %s || status=1\n", where, suite.pkg,
			build(t, "test", "-c", suite.pkg), suite.tests, *limit, verbose)
	}
	script.WriteString("exit $status\n")
	name := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(name, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// build builds a program of this repository with the go command, and returns its file.
func build(t *testing.T, arguments ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	last := len(arguments) - 1
	cmd := exec.Command("go", append(append(arguments[:last:last], "-o", file), arguments[last])...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := runQuietly(cmd); err != nil {
		t.Fatal(err)
	}
	return file
}
