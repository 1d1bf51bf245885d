package source_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/source"
	"github.com/weir-lb/weir/controlplane/store"
)

// TestLatency: a file that is written is in the maps within 50 ms.
func TestLatency(t *testing.T) {
	a := newAgent(t, app("a", 1, 1))
	a.expect("a:1")
	var took []time.Duration
	for i := range 40 {
		select {
		case <-a.maps.applied:
		default:
		}
		start := time.Now()
		a.write("a.yaml", app("a", 1, 2+i%2))
		select {
		case applied := <-a.maps.applied:
			took = append(took, applied.Sub(start))
		case <-time.After(10 * time.Second):
			t.Fatal("a change was not applied")
		}
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(took)
	t.Logf("from the start of the writing to the applier: median %v, longest %v", took[len(took)/2], took[len(took)-1])
	if median := took[len(took)/2]; median > 50*time.Millisecond {
		t.Errorf("median is %v, want at most 50ms", median)
	}
}

// TestNoOutage: however a file is written, what stays in it is never gone for a moment.
func TestNoOutage(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	a := newAgent(t, app("keep", 1, 4))
	a.expect("keep:4")
	path := filepath.Join(a.directory, "a.yaml")
	ways := []struct {
		name  string
		write func(content string)
	}{
		{"at once", func(content string) { a.write("a.yaml", content) }},
		{"renamed into place", func(content string) {
			a.write(".a.yaml.swp", content)
			a.must(os.Rename(filepath.Join(a.directory, ".a.yaml.swp"), path))
		}},
		{"removed and made anew", func(content string) {
			a.must(os.Remove(path))
			a.write("a.yaml", content)
		}},
		{"kept as a backup while written anew, as vim does", func(content string) {
			a.must(os.Rename(path, path+"~"))
			a.write("a.yaml", content)
			a.must(os.Remove(path + "~"))
		}},
		{"truncated, closed, and written later", func(content string) {
			a.write("a.yaml", "")
			time.Sleep(30 * time.Millisecond)
			a.write("a.yaml", content)
		}},
		{"in pieces", func(content string) { writeInPieces(t, path, content, random) }},
	}
	for round := range 12 {
		way := ways[round%len(ways)]
		// What stays comes last, so that every truncation takes it away first.
		content := app("other", 2, 1+round%2) + app("keep", 1, 4)
		start := time.Now()
		way.write(content)
		// On a busy machine this test may be held up between removing a file and making it anew.
		held := time.Since(start) > 15*time.Millisecond && strings.Contains(way.name, "anew")
		a.expect(fmt.Sprintf("keep:4 other:%d", 1+round%2))
		for _, state := range a.states() {
			if !strings.Contains(state, "keep:4") && !held {
				t.Fatalf("%s (seed %d): the maps held %q for a while", way.name, seed, state)
			}
		}
	}
}

// writeInPieces writes a file over some 50 ms, with pauses at arbitrary bytes.
func writeInPieces(t *testing.T, path, content string, random *rand.Rand) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for len(content) > 0 {
		n := min(len(content), 1+random.IntN(100))
		if _, err := file.WriteString(content[:n]); err != nil {
			t.Fatal(err)
		}
		content = content[n:]
		time.Sleep(time.Duration(random.IntN(6)) * time.Millisecond)
	}
}

// TestFiles: files come, change their names, and go; what is no manifest is not read.
func TestFiles(t *testing.T) {
	a := newAgent(t, app("a", 1, 1))
	a.expect("a:1")
	a.write("b.json", `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 1}]}}`)
	a.write("c.yml", app("c", 3, 2))
	for _, name := range []string{".hidden.yaml", "#c.yaml#", "c.yaml~", "c.yaml.swp", "README.md"} {
		a.write(name, app("x", 7, 1))
	}
	a.must(os.Mkdir(filepath.Join(a.directory, "old.d"), 0o700))
	a.write("old.d/x.yaml", app("x", 7, 1))
	a.expect("a:1 b:0 c:2")
	a.states()
	a.must(os.Rename(filepath.Join(a.directory, "c.yml"), filepath.Join(a.directory, "d.yaml")))
	a.must(os.Remove(filepath.Join(a.directory, "b.json")))
	a.expect("a:1 c:2")
	for _, state := range a.states() {
		if !strings.Contains(state, "c:2") {
			t.Errorf("the maps held %q while a file was renamed", state)
		}
	}
	if problems := a.manifests.Problems(); len(problems) != 0 {
		t.Errorf("problems are %v", problems)
	}
}

// TestProblemsOfFiles: they come and go with the fault.
func TestProblemsOfFiles(t *testing.T) {
	a := newAgent(t, app("a", 1, 1))
	a.expect("a:1")
	a.write("a.yaml", app("b", 2, 1)+"---\n[")
	a.expect("a:1 b:1")
	a.waitForProblems("DocumentRefused")
	a.write("a.yaml", app("b", 2, 1))
	a.expect("b:1")
	a.waitForProblems()
}

// TestConfigMap: the directory of a mounted ConfigMap is taken in when the link is swapped.
func TestConfigMap(t *testing.T) {
	directory := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	publish := func(version, content string) {
		must(os.Mkdir(filepath.Join(directory, version), 0o700))
		must(os.WriteFile(filepath.Join(directory, version, "a.yaml"), []byte(content), 0o600))
		must(os.Symlink(version, filepath.Join(directory, "..data_tmp")))
		must(os.Rename(filepath.Join(directory, "..data_tmp"), filepath.Join(directory, "..data")))
	}
	publish("..1", app("a", 1, 1))
	must(os.Symlink("..data/a.yaml", filepath.Join(directory, "a.yaml")))
	a, _ := startAgent(t, directory, "")
	a.expect("a:1")
	publish("..2", app("a", 1, 3))
	must(os.RemoveAll(filepath.Join(directory, "..1")))
	a.expect("a:3")
	publish("..3", app("a", 1, 2))
	a.expect("a:2")
	must(os.Remove(filepath.Join(directory, "a.yaml")))
	a.expect("")
}

// TestDirectoryGone: nothing is lost with the directory, and all is followed again when it is back, whether
// it was removed or renamed, alone or with the directory around it.
func TestDirectoryGone(t *testing.T) {
	a := newAgent(t, app("a", 1, 1))
	a.expect("a:1")
	parent := filepath.Dir(a.directory)
	ways := []struct {
		name     string
		goes     func() error
		comes    func() error
		contents string
	}{
		{"removed", func() error { return os.RemoveAll(a.directory) }, func() error { return os.Mkdir(a.directory, 0o700) }, app("a", 1, 2)},
		{"renamed", func() error { return os.Rename(a.directory, a.directory+".old") }, func() error { return os.Mkdir(a.directory, 0o700) }, app("a", 1, 3)},
		{"with its parent", func() error { return os.RemoveAll(parent) }, func() error { return os.MkdirAll(a.directory, 0o700) }, app("a", 1, 4)},
	}
	for i, way := range ways {
		a.states()
		a.must(way.goes())
		a.waitForProblems("DirectoryMissing")
		a.must(way.comes())
		time.Sleep(100 * time.Millisecond) // whoever fills it takes longer than a file may be missed elsewhere
		a.write("a.yaml", way.contents)
		a.expect(fmt.Sprintf("a:%d", i+2))
		for _, state := range a.states() {
			if state == "" {
				t.Errorf("%s: the maps were empty for a while", way.name)
			}
		}
		a.waitForProblems()
	}
	a.must(os.Remove(filepath.Join(a.directory, "a.yaml")))
	a.expect("")
}

// TestS09_FirstListing: many files are one first state, not a growing one.
func TestS09_FirstListing(t *testing.T) {
	directory := t.TempDir()
	for i := range 200 {
		path := filepath.Join(directory, fmt.Sprintf("%d.yaml", i))
		if err := os.WriteFile(path, []byte(app(fmt.Sprintf("s%d", i), i, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := startAgent(t, directory, "")
	for len(a.maps.applied) == 0 {
		time.Sleep(time.Millisecond)
	}
	if n := strings.Count(a.states()[0], ":1"); n != 200 {
		t.Errorf("the first state has %d services, want 200", n)
	}
}

// TestRestartBesideBrokenFile: an agent that starts beside a broken file serves what the one before read from
// it; when the file is gone, so is the copy.
func TestRestartBesideBrokenFile(t *testing.T) {
	directory, saved := t.TempDir(), filepath.Join(t.TempDir(), "saved")
	path := filepath.Join(directory, "a.yaml")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(app("a", 1, 2))
	a, stop := startAgent(t, directory, saved)
	a.expect("a:2")
	stop()
	write("a: [")
	a, stop = startAgent(t, directory, saved)
	a.expect("a:2")
	stop()

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	a, _ = startAgent(t, directory, saved)
	for len(a.maps.applied) == 0 {
		time.Sleep(time.Millisecond)
	}
	a.expect("")
	expectEmpty(t, saved)

	write(app("a", 1, 2))
	a.expect("a:2")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	a.expect("")
	expectEmpty(t, saved)
}

// expectEmpty waits until a directory has nothing in it.
func expectEmpty(t *testing.T, directory string) {
	t.Helper()
	for range 500 {
		if entries, err := os.ReadDir(directory); err == nil && len(entries) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s is not empty", directory)
}

// TestNoDirectory: a directory that is not there at the start is an error that says what to do.
func TestNoDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	_, err := source.NewManifests(source.Options{Directory: path, Store: store.New(0), Log: zap.NewNop()})
	if err == nil || !strings.Contains(err.Error(), path+" does not exist") {
		t.Errorf("error is %v", err)
	}
}

// TestS09_DirectoryGoneAtStart: a directory that goes between the start and the first listing has not been
// listed, and nothing is written before it has been.
func TestS09_DirectoryGoneAtStart(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "manifests")
	put := func() {
		if err := errors.Join(os.Mkdir(directory, 0o700), os.WriteFile(filepath.Join(directory, "a.yaml"), []byte(app("a", 1, 1)), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	put()
	objects := store.New(0)
	manifests, err := source.NewManifests(source.Options{Directory: directory, Store: objects, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(directory); err != nil {
		t.Fatal(err)
	}
	go manifests.Run(t.Context())
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if work, err := objects.Next(ctx); err == nil {
		t.Fatalf("the listing is said to be complete, with %d Services", len(work.Items))
	}
	put()
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if work, err := objects.Next(ctx); err != nil || len(work.Items) != 1 || work.Items[0].Service == nil {
		t.Fatalf("the first listing is %+v, %v", work, err)
	}
}
