package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxFileSize bounds what one file may cost.
const maxFileSize = 64 << 20

// How sure it is that a file is complete.
type writing int

const (
	written      writing = iota // no process has it open for writing
	beingWritten                // one has
	unknown                     // the file system, or our privileges, cannot tell
)

// snapshot is what a look at a file found.
type snapshot struct {
	gone     bool
	writing  writing
	modified time.Time
	content  []byte // of a file that is not being written
}

// errChanging says that a file changed under the reader.
var errChanging = errors.New("the file changed while it was read")

// readSnapshot reads a file, unless it is being written. An error is about the file and will not go away by
// itself, except errChanging.
func readSnapshot(path string) (snapshot, error) {
	// Not blocking: a FIFO would hold us up until somebody wrote to it.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return snapshot{gone: true}, nil
	}
	if err != nil {
		return snapshot{}, err
	}
	defer file.Close()

	before, err := file.Stat()
	if err != nil {
		return snapshot{}, err
	}
	if !before.Mode().IsRegular() {
		return snapshot{}, fmt.Errorf("%s is not a regular file", path)
	}
	if before.Size() > maxFileSize {
		return snapshot{}, fmt.Errorf("%s has %d MiB, more than the %d MiB that are read: split it", path, before.Size()>>20, maxFileSize>>20)
	}
	s := snapshot{modified: before.ModTime()}
	if s.writing, err = probe(file); err != nil || s.writing == beingWritten {
		return s, err
	}
	if s.content, err = io.ReadAll(io.LimitReader(file, maxFileSize)); err != nil {
		return s, err
	}
	after, err := file.Stat()
	if err != nil {
		return s, err
	}
	if again, err := probe(file); err != nil || again != s.writing || !same(before, after) {
		return s, errors.Join(err, errChanging)
	}
	return s, nil
}

// missing tells whether there is no such directory.
func missing(directory string) bool {
	info, err := os.Stat(directory)
	return err != nil || !info.IsDir()
}

// same tells whether nothing was written between two looks at a file.
func same(a, b fs.FileInfo) bool {
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// probe tells whether a process has the file open for writing. inotify says when one closes it, but fsnotify
// does not pass that on, and it could not speak of a time before the watch. The kernel grants a read lease
// on a file that nobody writes, and none on one that somebody does; it is given back at once.
func probe(file *os.File) (writing, error) {
	connection, err := file.SyscallConn()
	if err != nil {
		return unknown, err
	}
	state := unknown
	err = connection.Control(func(fd uintptr) {
		switch _, err := unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); {
		case err == nil:
			_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK) // closing the file does it, too
			state = written
		case errors.Is(err, unix.EAGAIN):
			state = beingWritten
		}
	})
	return state, err
}
