package source

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
)

// How long things take to be believed. A change is to be live within 50 ms of the file's writing.
const (
	lookAfter     = 2 * time.Millisecond   // of the first sign of a change: programs write in several steps
	lookAgainMost = 100 * time.Millisecond // while a process has the file open
	settleUnknown = 20 * time.Millisecond  // without a change, where nobody can tell whether it is being written
	settleLost    = 20 * time.Millisecond  // that objects, or the whole file, have been missing
	settleUnsure  = 200 * time.Millisecond // the same, where nobody can tell whether it is being written
	settleEmpty   = time.Second            // that a file has been empty
	tellWriting   = 5 * time.Second        // that a file has been open for writing
	mostUnknown   = time.Second            // of changes without a pause, where nobody can tell
)

// file is one manifest. It is told of changes, and looks at the file when a look is due. Time is what its
// caller says it is.
type file struct {
	path, name string
	readFile   func(path string) (snapshot, error)
	saved      string // where its content is kept when it is free of errors; empty: nowhere

	accepted []located // what it says
	read     bool      // accepted has been read from it, if only in parts
	ignored  []string
	problems []compile.Problem
	cache    map[[sha256.Size]byte]decoded

	arrived  time.Time // of the oldest change that is not dealt with; zero if there is none
	touched  time.Time // of the latest one
	due      time.Time // when to look; zero: there is no need
	delay    time.Duration
	lacking  time.Time // since when it has lacked something that it had
	patience time.Duration
	content  []byte // to be saved
	removed  bool   // what was saved is to go
}

// touch tells the file of a change.
func (f *file) touch(now time.Time) {
	if f.arrived.IsZero() {
		f.arrived = now
	}
	f.touched, f.delay = now, 0
	f.lookBy(now.Add(lookAfter))
}

// lookBy makes a look due no later than a time.
func (f *file) lookBy(t time.Time) {
	if f.due.IsZero() || t.Before(f.due) {
		f.due = t
	}
}

// look looks at the file. It tells whether the file now says something else than f.accepted did before; if
// the file is not done yet, another look is due.
func (f *file) look(now time.Time) (changed bool) {
	f.due = time.Time{}
	found, err := f.readFile(f.path)
	switch {
	case errors.Is(err, errChanging):
		f.lookLater(now)
		return false
	case err != nil:
		f.arrived = time.Time{}
		return f.refuse("FileUnreadable", "%v; what it last said stays in use", err)
	case found.gone && missing(filepath.Dir(f.path)):
		// The directory says nothing, so it does not say that the file is gone; and when it is back, whoever
		// makes it again may still be filling it.
		f.arrived, f.lacking, f.patience = time.Time{}, time.Time{}, settleEmpty
		return false
	case found.gone:
		return f.consider(now, found, nil, nil)
	case found.writing == beingWritten:
		return f.waitForWriter(now)
	case found.writing == unknown && f.restless(now, found):
		return false
	}
	f.delay = 0
	objects, problems := f.parse(found.content)
	return f.consider(now, found, objects, problems)
}

// waitForWriter comes back soon, and says so when that goes on for long.
func (f *file) waitForWriter(now time.Time) (changed bool) {
	f.lacking = time.Time{}
	f.lookLater(now)
	if now.Sub(f.arrived) < tellWriting {
		return false
	}
	return f.goOn()
}

// goOn makes do with what the file last said while it is being written.
func (f *file) goOn() (changed bool) {
	return f.refuse("FileBeingWritten", "a process has it open for writing; what it last said stays in use until the process closes it")
}

// lookLater makes another look due, the later the longer it has gone on.
func (f *file) lookLater(now time.Time) {
	f.delay = min(max(2*f.delay, time.Millisecond), lookAgainMost)
	f.lookBy(now.Add(f.delay))
}

// restless tells whether a file that may be being written has changed just now; then it is looked at again.
func (f *file) restless(now time.Time, found snapshot) bool {
	quiet := f.touched
	if found.modified.After(quiet) && found.modified.Before(now) {
		quiet = found.modified
	}
	if now.Sub(quiet) >= settleUnknown || now.Sub(f.arrived) >= mostUnknown {
		return false
	}
	f.lookBy(quiet.Add(settleUnknown))
	return true
}

// consider accepts what was found, if it lacks nothing that the file had, or has done so for long enough.
func (f *file) consider(now time.Time, found snapshot, objects []located, problems []compile.Problem) (changed bool) {
	if hasErrors(problems) {
		objects = merge(objects, f.before())
	}
	if settle := f.settle(found, objects); settle > 0 {
		if f.lacking.IsZero() {
			f.lacking = now
		}
		if now.Sub(f.lacking) < settle {
			f.lookBy(f.lacking.Add(settle))
			return false
		}
	}
	return f.accept(found, objects, problems)
}

// settle returns for how long a file has to be as it is found before that is believed.
func (f *file) settle(found snapshot, objects []located) time.Duration {
	if !lacks(objects, f.accepted) {
		return 0
	}
	settle := settleLost
	switch {
	case !found.gone && len(objects) == 0:
		settle = settleEmpty
	case found.writing == unknown:
		settle = settleUnsure
	}
	return max(settle, f.patience)
}

// accept makes what was found what the file says.
func (f *file) accept(found snapshot, objects []located, problems []compile.Problem) (changed bool) {
	changed = !slices.Equal(objects, f.accepted)
	f.accepted, f.problems, f.read = objects, problems, !found.gone
	f.lacking, f.arrived, f.patience = time.Time{}, time.Time{}, 0
	if !hasErrors(problems) {
		f.content, f.removed = found.content, found.gone
	}
	return changed
}

// refuse leaves the file as it was, with a problem.
func (f *file) refuse(reason, format string, args ...any) (changed bool) {
	before := f.before()
	changed = !slices.Equal(before, f.accepted)
	f.accepted, f.read = before, true
	f.problems = []compile.Problem{f.problem(reason, format, args...)}
	return changed
}

// before returns what the file last said: to this agent or, if it has not been read yet, to an earlier one.
func (f *file) before() []located {
	if f.read || f.saved == "" {
		return f.accepted
	}
	found, err := f.readFile(f.saved)
	if err != nil || found.gone {
		return f.accepted
	}
	earlier := file{name: f.name}
	objects, _ := earlier.parse(found.content)
	return objects
}

// parse reads the documents of a file. Those that have not changed are not decoded again, and give the same
// objects.
func (f *file) parse(content []byte) (objects []located, problems []compile.Problem) {
	cache := map[[sha256.Size]byte]decoded{}
	f.ignored = nil
	for _, document := range split(f.name, content) {
		digest := sha256.Sum256(document.text)
		out, known := f.cache[digest]
		if !known || len(out.errors) > 0 { // errors tell lines, which may have moved
			out = decode(document)
		}
		cache[digest] = out
		for _, object := range out.objects {
			objects = append(objects, located{object, f.name, len(objects), document.number})
		}
		for _, err := range out.errors {
			problems = append(problems, f.problem(documentRefused, "document %d (from line %d): %v; correct it: until then, nothing goes that the file had before",
				document.number, document.line, err))
		}
		for _, err := range out.warnings {
			problems = append(problems, f.problem("FieldUnknown", "document %d (from line %d): %v, which has no effect",
				document.number, document.line, err))
		}
		f.ignored = append(f.ignored, out.ignored...)
	}
	f.cache = cache
	return objects, problems
}

// documentRefused is the reason of problems that keep a file's objects from going.
const documentRefused = "DocumentRefused"

func hasErrors(problems []compile.Problem) bool {
	return slices.ContainsFunc(problems, func(p compile.Problem) bool { return p.Reason == documentRefused })
}

func (f *file) problem(reason, format string, args ...any) compile.Problem {
	return compile.Problem{Object: "File " + filepath.Base(f.name), Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// lacks tells whether an object that was there is not there any more.
func lacks(now, before []located) bool {
	have := keysOf(now)
	return slices.ContainsFunc(before, func(place located) bool { return !have[keyOf(place.object)] })
}

// merge adds to a list the objects of an older one that it lacks.
func merge(now, before []located) []located {
	have := keysOf(now)
	merged := slices.Clone(now)
	for _, place := range before {
		if !have[keyOf(place.object)] {
			place.position = len(merged)
			merged = append(merged, place)
		}
	}
	return merged
}

func keysOf(places []located) map[objectKey]bool {
	keys := make(map[objectKey]bool, len(places))
	for _, place := range places {
		keys[keyOf(place.object)] = true
	}
	return keys
}
