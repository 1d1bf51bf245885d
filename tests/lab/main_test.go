package lab_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/weir-lb/weir/tests/lab"
)

// session and weirBinary are set once, before the first test.
var (
	session        *lab.Session
	weirBinary     string
	sharedClusters = clusters{byKind: map[string]*sharedCluster{}}
)

func TestMain(m *testing.M) {
	lab.RunHelper()
	if os.Geteuid() != 0 {
		fmt.Println("lab tests make network namespaces and load BPF programs: skipped, as this is not root")
		os.Exit(0)
	}
	if os.Getenv(crashEnv) != "" {
		fmt.Fprintln(os.Stderr, buildAndWait())
		os.Exit(1)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// run runs the tests in a session, with a binary built from the sources beside them.
func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "weir-lab-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if weirBinary, err = buildWeir(dir); err != nil {
		return 1, err
	}
	if session, err = lab.Open(); err != nil {
		return 1, err
	}
	defer func() {
		if closed := errors.Join(sharedClusters.close(), session.Close()); closed != nil && err == nil {
			code, err = 1, fmt.Errorf("remove the labs: %w", closed)
		}
	}()
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

// rules are the two kinds of node that each test runs on.
var rules = []struct {
	name      string
	netfilter bool
}{{"bare", false}, {"netfilter", true}}

// onEachNode runs a test bare, and with a real node's netfilter rules.
func onEachNode(t *testing.T, options lab.Options, test func(t *testing.T, options lab.Options)) {
	t.Helper()
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			options := options
			options.Netfilter = r.netfilter
			test(t, options)
		})
	}
}

// build makes a lab of the test's own.
func build(t *testing.T, options lab.Options) *lab.Lab {
	t.Helper()
	l, err := session.Build(options)
	if errors.Is(err, lab.ErrNoWire) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	return l
}
