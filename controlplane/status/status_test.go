package status

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test binary a process that holds a lock, where told so.
func TestMain(m *testing.M) {
	if pins := os.Getenv("WEIR_TEST_HOLD"); pins != "" {
		hold(pins)
		return
	}
	os.Exit(m.Run())
}

// hold takes a lock and keeps it until it is killed, or standard input ends.
func hold(pins string) {
	if _, err := Take(pins); err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		return
	}
	os.Stdout.WriteString("held\n")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// holder starts a process that holds the lock, and returns what kills it.
func holder(t *testing.T, pins string) (kill func()) {
	t.Helper()
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), "WEIR_TEST_HOLD="+pins)
	stdin, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		stdin.Close()
		_ = process.Process.Kill()
		_ = process.Wait() // it was killed
	}
	t.Cleanup(kill)
	said := make([]byte, 100)
	n, err := stdout.Read(said)
	if got := strings.TrimSpace(string(said[:n])); err != nil || got != "held" {
		t.Fatalf("the holder says %q (%v)", got, err)
	}
	return kill
}

func TestLock(t *testing.T) {
	pins := filepath.Join(t.TempDir(), "weir")
	if _, err := Running(pins); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("whether an agent runs on no pins: %v", err)
	}
	kill := holder(t, pins)
	if running, err := Running(pins); !running || err != nil {
		t.Errorf("an agent holds the lock, and runs: %t (%v)", running, err)
	}
	if _, err := Take(pins); !errors.Is(err, ErrRunning) {
		t.Errorf("a second agent takes the lock: %v", err)
	}
	kill()
	if running, err := Running(pins); running || err != nil {
		t.Errorf("no agent holds the lock, and runs: %t (%v)", running, err)
	}
	lock, err := Take(pins)
	if err != nil {
		t.Fatalf("the lock of an agent that was killed: %v", err)
	}
	if err := lock.Release(); err != nil {
		t.Error(err)
	}
}

// TestLockOutlastsAsking takes the lock while others keep asking for it.
func TestLockOutlastsAsking(t *testing.T) {
	pins := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if _, err := Running(pins); err != nil {
				asked <- err
				return
			}
		}
		asked <- nil
	}()
	for range 100 {
		lock, err := Take(pins)
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.Release(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

// TestLockFollowsTheDirectory removes the directory and makes it again, as weir cleanup and a new agent do: the old
// lock is of no pins any more.
func TestLockFollowsTheDirectory(t *testing.T) {
	pins := filepath.Join(t.TempDir(), "weir")
	old, err := Take(pins)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Release()
	if err := os.Remove(pins); err != nil {
		t.Fatal(err)
	}
	lock, err := Take(pins)
	if err != nil {
		t.Fatalf("the lock of a new directory: %v", err)
	}
	defer lock.Release()
	if isStill(old.dir, pins) || !isStill(lock.dir, pins) {
		t.Error("which of two directories has the name is not told")
	}
}

func TestSnapshot(t *testing.T) {
	needRoot(t)
	pins := t.TempDir()
	t.Cleanup(func() {
		if err := Remove(pins); err != nil {
			t.Error(err)
		}
	})
	if _, err := Read(pins); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the status of no agent: %v", err)
	}
	if err := Write(pins, Snapshot{PID: 7, SNATPorts: PortRange{First: 61000, Last: 65535}}); err != nil {
		t.Fatal(err)
	}
	got, err := Read(pins)
	if err != nil || got.PID != 7 || got.SNATPorts.Size() != 4536 {
		t.Errorf("%+v (%v) is read back", got, err)
	}
	link := filepath.Join(t.TempDir(), "another-name")
	if err := os.Symlink(pins, link); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(link); err != nil || got.PID != 7 {
		t.Errorf("%+v (%v) is read by another name", got, err)
	}
	if err := Remove(pins); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(pins); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the status after its removal: %v", err)
	}
}

// TestBoard posts in a hurry: the file says the last of it, also where the end comes at once.
func TestBoard(t *testing.T) {
	needRoot(t)
	pins := t.TempDir()
	t.Cleanup(func() {
		if err := Remove(pins); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	b := NewBoard(pins, Snapshot{PID: 7})
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		b.Keep(ctx, func(err error) { t.Error(err) })
	}()
	for i := range 100 {
		b.Change(func(s *Snapshot) { s.Sync.Services = i })
		b.Failed(errors.New("it went wrong"))
	}
	cancel()
	<-kept
	got, err := Read(pins)
	if err != nil || got.Sync.Services != 99 || len(got.Errors) != errorsKept {
		t.Errorf("%d services and %d errors (%v) are read back, want 99 and %d", got.Sync.Services, len(got.Errors), err, errorsKept)
	}
	if got.Written.Before(time.Now().Add(-time.Minute)) {
		t.Errorf("the file says that it was written at %s", got.Written)
	}
}

// needRoot skips a test that writes below /run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: this test writes below /run")
	}
}
