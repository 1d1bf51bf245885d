package masquerade

import (
	"context"
	"os"
	"runtime"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// inNamespace gives the test a network namespace of its own.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // and ends with the test: the thread is not used again
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// TestC02_Rules makes the table twice, and takes it away twice: there is always one, or none, and one rule in it.
func TestC02_Rules(t *testing.T) {
	inNamespace(t)
	rules := Rules{Mark: 1 << 14, Ports: compile.PortRange{First: 32768, Last: 60999}}
	for range 2 {
		if err := rules.Make(); err != nil {
			t.Fatal(err)
		}
		c := &nftables.Conn{}
		table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
		found, err := c.GetRules(table, &nftables.Chain{Name: "postrouting", Table: table})
		if err != nil || len(found) != 1 || len(found[0].Exprs) != len(rules.rule()) {
			t.Errorf("the chain has the rules %v, %v", found, err)
		}
	}
	for _, want := range []bool{true, false} {
		if removed, err := Remove(); err != nil || removed != want {
			t.Errorf("removed: %v, %v, want %v", removed, err, want)
		}
	}
	if there, err := exists(&nftables.Conn{}); there || err != nil {
		t.Errorf("the table is still there: %v, %v", there, err)
	}
}

// TestC02_Keep ends with its context.
func TestC02_Keep(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (Rules{}).Keep(ctx, func(err error) { t.Error(err) }); err != nil {
		t.Error(err)
	}
}
