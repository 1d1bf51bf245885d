package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

const (
	listingMost  = time.Second // that the first listing waits for files that are being written
	rewatchAfter = time.Second // that the directory has been missing
)

// Options are what a Manifests source works with.
type Options struct {
	Directory string
	Store     *store.Store
	Log       *zap.Logger

	// Saved is a directory of our own for copies of the files as they were when last free of errors, so
	// that a restart of the agent beside a broken file does not take its objects away. Made if it is
	// missing. Empty: none are kept.
	Saved string
}

// Manifests keeps a store up to date with a directory of manifests. The package comment says how.
type Manifests struct {
	options   Options
	directory string // absolute
	watcher   *fsnotify.Watcher

	// Owned by Run.
	files     map[string]*file
	started   time.Time
	listed    bool      // the directory has been listed; its files may not have been read yet
	syncFrom  time.Time // not to sync before
	synced    bool
	rewatchAt time.Time // zero: the directory is there

	mu       sync.Mutex
	table    *table
	problems map[string][]compile.Problem // by file; of the directory under ""
}

// NewManifests starts watching a directory, which must exist. Call Run to read it.
func NewManifests(options Options) (*Manifests, error) {
	directory, err := filepath.Abs(options.Directory)
	if err != nil {
		return nil, fmt.Errorf("manifests directory %s: %w", options.Directory, err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch manifests directory: %w (raise fs.inotify.max_user_instances?)", err)
	}
	m := &Manifests{
		options: options, directory: directory, watcher: watcher,
		files: map[string]*file{}, table: newTable(), problems: map[string][]compile.Problem{},
	}
	if err := m.open(); err != nil {
		return nil, errors.Join(err, watcher.Close())
	}
	return m, nil
}

// open checks the directories and sets up the watches.
func (m *Manifests) open() error {
	if missing(m.directory) {
		return fmt.Errorf("manifests directory %s does not exist, or is none: create it, or name another", m.directory)
	}
	if m.options.Saved != "" {
		if err := os.MkdirAll(m.options.Saved, 0o700); err != nil {
			return fmt.Errorf("directory for saved manifests: %w", err)
		}
	}
	return m.watch()
}

// watch watches the directory, and the one above to see it come back. The old watch may be of a directory
// that has been renamed or removed.
func (m *Manifests) watch() error {
	if missing(m.directory) {
		return fmt.Errorf("no directory %s", m.directory)
	}
	_ = m.watcher.Remove(m.directory)
	_ = m.watcher.Add(filepath.Dir(m.directory)) // without it, the directory's return is seen by the timer
	if err := m.watcher.Add(m.directory); err != nil {
		return fmt.Errorf("watch manifests directory: %w", err)
	}
	return nil
}

// Run reads the directory into the store, says when the first listing is complete, and follows the
// directory until the context ends.
func (m *Manifests) Run(ctx context.Context) error {
	defer m.watcher.Close()
	m.started = time.Now()
	m.rewatchAt = m.started
	m.rewatch(m.started)
	for {
		m.lookAtAll(time.Now())
		timer := time.NewTimer(time.Until(m.nextDue()))
		err := m.wait(ctx, timer.C)
		timer.Stop()
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// wait waits for something to happen that concerns us.
func (m *Manifests) wait(ctx context.Context, timer <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer:
			m.rewatch(time.Now())
			return nil
		case event, open := <-m.watcher.Events:
			if !open {
				return errors.New("watch manifests directory: the watch has ended")
			}
			if m.handle(event, time.Now()) {
				return nil
			}
		case err := <-m.watcher.Errors:
			m.options.Log.Warn("watch manifests directory", zap.Error(err)) // events were lost, most likely
			m.relist(time.Now())
			return nil
		}
	}
}

// handle takes in one event, and tells whether it concerns us.
func (m *Manifests) handle(event fsnotify.Event, now time.Time) (ours bool) {
	name := filepath.Base(event.Name)
	switch {
	case event.Name == m.directory:
		m.rewatchAt = now
		m.rewatch(now)
	case filepath.Dir(event.Name) != m.directory:
		return false
	case name == "..data":
		m.relist(now)
	case isManifest(name):
		m.touch(name, now)
	default:
		return false
	}
	return true
}

// isManifest tells whether a file of that name is read.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
		return false
	}
	return slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

// rewatch watches and lists the directory anew if that is due: at the start, and when the directory went
// away or may have become another.
func (m *Manifests) rewatch(now time.Time) {
	if m.rewatchAt.IsZero() || now.Before(m.rewatchAt) {
		return
	}
	m.bePatient(settleEmpty) // it may have been made anew, and not be filled yet
	err := m.watch()
	if err == nil {
		err = m.list(now)
	}
	if err != nil {
		if m.setProblems("", []compile.Problem{m.directoryMissing(err)}) {
			m.options.Log.Error("manifests directory is missing", zap.Error(err))
		}
		m.rewatchAt = now.Add(rewatchAfter)
		m.syncFrom = m.rewatchAt.Add(settleEmpty) // to be filled, as above
		return
	}
	m.rewatchAt = time.Time{}
	m.setProblems("", nil)
}

func (m *Manifests) directoryMissing(err error) compile.Problem {
	return compile.Problem{
		Object: "Directory " + m.options.Directory, Reason: "DirectoryMissing",
		Message: fmt.Sprintf("%v; what it last said stays in use until it is there again", err),
	}
}

// bePatient makes every file that is gone be missed for longer before that is believed.
func (m *Manifests) bePatient(patience time.Duration) {
	for _, f := range m.files {
		f.patience, f.lacking = patience, time.Time{}
	}
}

// relist lists the directory where changes may have gone unseen.
func (m *Manifests) relist(now time.Time) {
	if err := m.list(now); err != nil {
		m.rewatchAt = now
	}
}

// list touches every file that there is, and every one that there was.
func (m *Manifests) list(now time.Time) error {
	entries, err := os.ReadDir(m.directory)
	if err != nil {
		return fmt.Errorf("list manifests: %w", err)
	}
	for name := range m.files {
		m.touch(name, now)
	}
	for _, entry := range entries {
		if isManifest(entry.Name()) && !entry.IsDir() {
			m.touch(entry.Name(), now)
		}
	}
	if !m.listed {
		m.listed = true
		m.prune()
	}
	return nil
}

// touch notes that a file may have changed.
func (m *Manifests) touch(name string, now time.Time) {
	f, known := m.files[name]
	if !known {
		f = &file{path: filepath.Join(m.directory, name), name: name, readFile: readSnapshot}
		if m.options.Saved != "" {
			f.saved = filepath.Join(m.options.Saved, name)
		}
		m.files[name] = f
	}
	f.touch(now)
}

// lookAtAll looks at every file that is due, and completes the first listing.
func (m *Manifests) lookAtAll(now time.Time) {
	waiting := false
	for _, f := range m.files {
		if !f.due.IsZero() && !f.due.After(now) {
			m.lookAt(f, now)
		}
		waiting = waiting || !f.due.IsZero()
	}
	if m.synced || !m.listed || now.Before(m.syncFrom) || waiting && now.Sub(m.started) < listingMost {
		return
	}
	for _, f := range m.files {
		if !f.due.IsZero() && !f.read {
			m.update(f, f.goOn)
		}
	}
	m.synced = true
	m.options.Store.Synced()
	m.options.Log.Info("manifests read", zap.String("directory", m.directory), zap.Int("files", len(m.files)))
}

// lookAt looks at one file and takes in what it says.
func (m *Manifests) lookAt(f *file, now time.Time) {
	before := strings.Join(f.ignored, ", ")
	m.update(f, func() bool { return f.look(now) })
	if ignored := strings.Join(f.ignored, ", "); ignored != before && ignored != "" {
		m.options.Log.Info("kinds that are not read", zap.String("file", f.path), zap.String("kinds", ignored))
	}
	m.keep(f)
	if f.due.IsZero() && !f.read && len(f.accepted) == 0 && len(f.problems) == 0 {
		delete(m.files, f.name)
	}
}

// update lets a file look, and brings the store up to date with the outcome.
func (m *Manifests) update(f *file, look func() (changed bool)) {
	arrived, before := f.arrived, f.accepted
	if changed := look(); changed {
		m.mu.Lock()
		batch := m.table.replace(before, f.accepted, arrived)
		m.mu.Unlock()
		m.options.Store.Update(batch)
		m.options.Log.Debug("manifest read", zap.String("file", f.path), zap.Int("objects", len(f.accepted)))
	}
	if m.setProblems(f.name, f.problems) {
		for _, problem := range f.problems {
			m.options.Log.Warn("manifest", zap.String("file", f.path), zap.String("reason", problem.Reason), zap.String("problem", problem.Message))
		}
	}
}

// setProblems replaces the problems of a file, and tells whether they are others than before.
func (m *Manifests) setProblems(name string, problems []compile.Problem) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed = !slices.Equal(m.problems[name], problems)
	m.problems[name] = problems
	if len(problems) == 0 {
		delete(m.problems, name)
	}
	return changed
}

// nextDue returns when there is something to do without being told.
func (m *Manifests) nextDue() time.Time {
	next := m.rewatchAt
	if now := time.Now(); next.IsZero() && !m.synced && now.Before(m.syncFrom) {
		next = m.syncFrom
	}
	for _, f := range m.files {
		if !f.due.IsZero() && (next.IsZero() || f.due.Before(next)) {
			next = f.due
		}
	}
	if next.IsZero() {
		next = time.Now().Add(time.Hour)
	}
	return next
}

// Problems lists what is wrong with the directory, its files and their objects. It may be called at any
// time, from anywhere.
func (m *Manifests) Problems() []compile.Problem {
	m.mu.Lock()
	defer m.mu.Unlock()
	problems := m.table.problems()
	for _, list := range m.problems {
		problems = append(problems, list...)
	}
	return problems
}

// NodeMissing is about sources that must have a Node of the agent's name: manifests may do without.
func (m *Manifests) NodeMissing() bool { return false }

// Failure says in a sentence why changes are not heard of; empty where they are.
func (m *Manifests) Failure() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, problem := range m.problems[""] {
		return problem.Object + ": " + problem.Message
	}
	return ""
}
