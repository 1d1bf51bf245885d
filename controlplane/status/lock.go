package status

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning says that an agent has the pins.
var ErrRunning = errors.New("an agent is running on these pins")

// lockTries and lockPause bound how long Take waits for a reader that is just asking.
const (
	lockTries = 20
	lockPause = 10 * time.Millisecond
)

// Lock is held by whoever may change what is pinned. The kernel lets go of it when the process ends, however it
// ends.
type Lock struct{ dir *os.File }

// Take takes the lock of a directory of pins, which it makes if there is none. The error is ErrRunning if
// another process has it.
func Take(pins string) (*Lock, error) {
	for range lockTries {
		lock, err := take(pins)
		if lock != nil || err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return lock, err
		}
		time.Sleep(lockPause)
	}
	return nil, fmt.Errorf("lock %s: %w", pins, ErrRunning)
}

// Release lets go of the lock.
func (l *Lock) Release() error { return l.dir.Close() }

// take tries once. It returns nil if the directory was removed meanwhile.
func take(pins string) (*Lock, error) {
	if err := os.MkdirAll(pins, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", pins, err)
	}
	dir, err := os.Open(pins)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", pins, err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", pins, err), dir.Close())
	}
	if !isStill(dir, pins) {
		return nil, dir.Close()
	}
	return &Lock{dir: dir}, nil
}

// isStill tells whether a path names the open file.
func isStill(file *os.File, path string) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named)
}

// Running tells whether an agent has the pins. The error is fs.ErrNotExist where there are none.
func Running(pins string) (bool, error) {
	dir, err := os.Open(pins)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	err = unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the lock of %s: %w", pins, err)
	}
	return false, nil
}
