package source

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const ms = time.Millisecond

// manifest returns a Service for each name.
func manifest(names ...string) string {
	var documents []string
	for _, name := range names {
		documents = append(documents, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\n", name))
	}
	return strings.Join(documents, "---\n")
}

// desk is a file, and a clock that the test moves.
type desk struct {
	t     *testing.T
	file  *file
	start time.Time // of the last change
	now   time.Time
}

// newDesk makes a file that says what the content does, and has been read.
func newDesk(t *testing.T, content string) *desk {
	path := filepath.Join(t.TempDir(), "x.yaml")
	now := time.Now()
	d := &desk{t: t, start: now, now: now, file: &file{path: path, name: "x.yaml", readFile: readSnapshot}}
	d.write(content)
	d.at(time.Second)
	return d
}

// write writes the file as a whole.
func (d *desk) write(content string) {
	d.t.Helper()
	if err := os.WriteFile(d.file.path, []byte(content), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.changed()
}

// changed tells the file of a change.
func (d *desk) changed() {
	d.start = d.now
	d.file.touch(d.now)
}

// open opens the file for writing, as programs do.
func (d *desk) open(flags int) *os.File {
	d.t.Helper()
	w, err := os.OpenFile(d.file.path, os.O_WRONLY|flags, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { w.Close() })
	d.changed()
	return w
}

// at moves the clock to a time after the last change, and takes every look that is due on the way.
func (d *desk) at(after time.Duration) *desk {
	until := d.start.Add(after)
	for !d.file.due.IsZero() && !d.file.due.After(until) {
		d.now = d.file.due
		d.file.look(d.now)
	}
	d.now = until
	return d
}

// says compares what the file says with names, and its problems with reasons.
func (d *desk) says(names string, reasons ...string) {
	d.t.Helper()
	var got, why []string
	for _, place := range d.file.accepted {
		got = append(got, place.object.GetName())
	}
	for _, problem := range d.file.problems {
		why = append(why, problem.Reason)
	}
	if strings.Join(got, " ") != names || !slices.Equal(why, reasons) {
		d.t.Errorf("after %v the file says %q %q, want %q %q", d.now.Sub(d.start), got, why, names, reasons)
	}
}

func TestWholeWrite(t *testing.T) {
	d := newDesk(t, manifest("a"))
	d.says("a")
	d.write(manifest("a", "b"))
	d.at(ms).says("a")
	d.at(2 * ms).says("a b")
	if !d.file.due.IsZero() || !d.file.arrived.IsZero() {
		t.Error("another look is due")
	}
}

// TestOpenForWriting: however long the writer takes, and whatever is in the file meanwhile, it counts when
// it is closed.
func TestOpenForWriting(t *testing.T) {
	d := newDesk(t, manifest("a", "b"))
	w := d.open(os.O_TRUNC)
	d.at(time.Second).says("a b")
	fmt.Fprint(w, manifest("a")+"---\n")
	d.changed()
	d.at(4 * time.Second).says("a b")
	d.at(5500*ms).says("a b", "FileBeingWritten")
	fmt.Fprint(w, manifest("c", "b"))
	w.Close()
	d.changed()
	d.at(2 * ms).says("a c b")

	// Closing is no event: it has to be noticed.
	w = d.open(0)
	d.at(30 * ms)
	w.Close()
	if d.file.due.IsZero() || d.file.due.Sub(d.now) > lookAgainMost {
		t.Errorf("the next look is due in %v", d.file.due.Sub(d.now))
	}
}

// TestLostObject: objects go, a moment later, and nothing goes that is back by then.
func TestLostObject(t *testing.T) {
	d := newDesk(t, manifest("a", "b"))
	d.write(manifest("a"))
	d.at(21 * ms).says("a b")
	d.at(22 * ms).says("a")

	d = newDesk(t, manifest("a", "b"))
	d.write(manifest("a"))
	d.at(10 * ms).says("a b")
	d.write(manifest("a", "c"))
	d.at(2 * ms).says("a b")
	d.write(manifest("a", "c", "b"))
	d.at(2 * ms).says("a c b")
	d.write(manifest("a", "b"))
	d.at(21 * ms).says("a c b") // the moment begins anew
	d.at(22 * ms).says("a b")
}

// TestEmptied: a file without a word is taken for one whose writing has begun, for a second.
func TestEmptied(t *testing.T) {
	for _, nothing := range []string{"", "# to be filled\n", "---\n"} {
		d := newDesk(t, manifest("a", "b"))
		d.write(nothing)
		d.at(900 * ms).says("a b")
		d.write(manifest("a", "b", "c"))
		d.at(2 * ms).says("a b c")
		d.write(nothing)
		d.at(1001 * ms).says("a b c")
		d.at(1002 * ms).says("")
	}
}

// TestRemoved: a file that is gone takes its objects along, unless it is only being replaced.
func TestRemoved(t *testing.T) {
	d := newDesk(t, manifest("a"))
	remove := func() {
		if err := os.Remove(d.file.path); err != nil {
			t.Fatal(err)
		}
		d.changed()
	}
	remove()
	d.at(21 * ms).says("a")
	d.write(manifest("b", "a"))
	d.at(2 * ms).says("b a")
	remove()
	d.at(22 * ms).says("")

	// In a directory that is gone, nothing can be known to have gone.
	d = newDesk(t, manifest("a"))
	if err := os.RemoveAll(filepath.Dir(d.file.path)); err != nil {
		t.Fatal(err)
	}
	d.changed()
	d.at(time.Hour).says("a")
}

// TestBadDocument: it is a problem, the other documents are as the file says, and nothing goes.
func TestBadDocument(t *testing.T) {
	const bad = "---\n a: [\n"
	d := newDesk(t, manifest("a", "b"))
	d.write(manifest("a", "c") + bad)
	d.at(2*ms).says("a c b", "DocumentRefused")
	if message := d.file.problems[0].Message; !strings.Contains(message, "document 3 (from line 9): line 9: ") {
		t.Errorf("message is %q", message)
	}
	d.write(manifest("c") + bad)
	d.at(time.Hour).says("c a b", "DocumentRefused")
	d.write("<<<<<<< HEAD\n" + manifest("c"))
	d.at(time.Hour).says("c a b", "DocumentRefused")
	d.write(manifest("c"))
	d.at(22 * ms).says("c")
	if err := os.Remove(d.file.path); err != nil {
		t.Fatal(err)
	}
	d.changed()
	d.at(22 * ms).says("")
}

// TestUnreadable: what cannot be read is a problem, and says nothing.
func TestUnreadable(t *testing.T) {
	d := newDesk(t, manifest("a"))
	replace := func(put func(path string) error) {
		if err := os.Remove(d.file.path); err != nil {
			t.Fatal(err)
		}
		if err := put(d.file.path); err != nil {
			t.Fatal(err)
		}
		d.changed()
	}
	replace(func(path string) error { return os.Mkdir(path, 0o700) })
	d.at(time.Hour).says("a", "FileUnreadable")
	replace(func(path string) error { return syscall.Mkfifo(path, 0o600) })
	d.at(time.Hour).says("a", "FileUnreadable")
	replace(func(path string) error { return os.Symlink(path, path) })
	d.at(time.Hour).says("a", "FileUnreadable")
	replace(func(path string) error {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		return os.Truncate(path, maxFileSize+1)
	})
	d.at(time.Hour).says("a", "FileUnreadable")
	replace(func(path string) error { return os.WriteFile(path, []byte(manifest("a", "b")), 0o600) })
	d.at(2 * ms).says("a b")
}

// TestWriterUnknown: where the kernel does not tell who writes, only time does.
func TestWriterUnknown(t *testing.T) {
	d := newDesk(t, manifest("a", "b"))
	d.file.readFile = func(path string) (snapshot, error) {
		found, err := readSnapshot(path)
		found.writing, found.modified = unknown, time.Time{}
		return found, err
	}
	d.write(manifest("a", "b", "c"))
	d.at(19 * ms).says("a b")
	d.at(20 * ms).says("a b c")

	d.write(manifest("a", "b"))
	d.at(219 * ms).says("a b c")
	d.at(220 * ms).says("a b")

	// Changes without a pause do not keep it waiting for ever.
	began := d.now
	d.write(manifest("a", "b", "d"))
	for d.now.Sub(began) < 1100*ms {
		d.changed()
		d.at(10 * ms)
	}
	d.says("a b d")
}

// TestSaved: a file that is broken, or being written, when the agent starts says what it said to the agent
// before; one in order is read as it is.
func TestSaved(t *testing.T) {
	again := func(content string, saved string) *desk {
		d := newDesk(t, "")
		d.file = &file{path: d.file.path, name: "x.yaml", readFile: readSnapshot, saved: d.file.path + ".saved"}
		if err := os.WriteFile(d.file.saved, []byte(saved), 0o600); err != nil {
			t.Fatal(err)
		}
		d.write(content)
		return d
	}
	again(manifest("b")+"---\nbad: [", manifest("a", "b")).at(2*ms).says("b a", "DocumentRefused")
	again(manifest("b"), manifest("a", "b")).at(2 * ms).says("b")
	again("", manifest("a", "b")).at(2 * ms).says("")
	d := again("", manifest("a", "b"))
	d.open(0)
	d.at(time.Second).says("")
	d.file.goOn()
	d.says("a b", "FileBeingWritten")
}

// TestUnchangedDocuments: what has not changed keeps its object, so that it is no work for the store.
func TestUnchangedDocuments(t *testing.T) {
	d := newDesk(t, manifest("a", "b"))
	before := d.file.accepted[1].object
	d.write(manifest("c", "a", "b"))
	d.at(2 * ms).says("c a b")
	if d.file.accepted[2].object != before {
		t.Error("b was decoded again")
	}
}

// TestProbe: asking whether somebody writes disturbs nobody who does, and no half of a write is ever read.
func TestProbe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	whole := strings.Repeat("x", 1<<16)
	if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	const writes = 500
	done := make(chan error, 1)
	go func() {
		for range writes {
			if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	start, read := time.Now(), 0
	for {
		found, err := readSnapshot(path)
		if err == nil && found.writing == written {
			read++
			if len(found.content) != len(whole) {
				t.Fatalf("read %d of %d bytes", len(found.content), len(whole))
			}
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("%d writes took %v", writes, took)
			}
			if read == 0 {
				t.Error("the file was never found complete")
			}
			return
		default:
		}
	}
}
