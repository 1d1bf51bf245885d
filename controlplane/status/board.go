package status

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"
)

const (
	// errorsKept is how many errors a snapshot remembers.
	errorsKept = 20
	// writePause is the shortest time between two writes of the file.
	writePause = 50 * time.Millisecond
)

// Board is where the parts of an agent post what they have to say. It is safe for concurrent use.
type Board struct {
	pins string

	mu       sync.Mutex
	snapshot Snapshot
	changed  chan struct{} // holds one token while the file is behind
}

// NewBoard returns a board that starts with what is known of an agent from the beginning.
func NewBoard(pins string, snapshot Snapshot) *Board {
	b := &Board{pins: pins, snapshot: snapshot, changed: make(chan struct{}, 1)}
	b.signal()
	return b
}

// Change changes what the board says. The function must replace slices, not write into them.
func (b *Board) Change(change func(*Snapshot)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.snapshot
	change(&b.snapshot)
	if !reflect.DeepEqual(before, b.snapshot) {
		b.signal()
	}
}

// Failed posts an error.
func (b *Board) Failed(err error) {
	b.Change(func(s *Snapshot) {
		kept := s.Errors[max(0, len(s.Errors)-errorsKept+1):]
		s.Errors = append(slices.Clone(kept), Error{Time: time.Now(), Message: err.Error()})
	})
}

// Snapshot returns what the board says.
func (b *Board) Snapshot() Snapshot {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.snapshot
}

// Keep writes the file after each change, until the context ends, and then once more. It reports what goes wrong
// and goes on.
func (b *Board) Keep(ctx context.Context, report func(error)) {
	for {
		select {
		case <-ctx.Done():
		case <-b.changed:
		}
		last := ctx.Err() != nil // what is posted during a write is for the next one
		if err := b.write(); err != nil {
			report(err)
		}
		if last {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(writePause):
		}
	}
}

func (b *Board) write() error { return Write(b.pins, b.Snapshot()) }

// Fail posts an error of an agent that ends before Keep, and writes the file.
func (b *Board) Fail(err error) error {
	b.Failed(err)
	return b.write()
}

func (b *Board) signal() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}
