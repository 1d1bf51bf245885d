// Package cputime measures what work costs. Unlike the time of day that does not grow while others run, or hold a lock
// of the kernel.
package cputime

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Of does something that starts no goroutines, and returns the CPU time that it took.
func Of(do func() error) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := Thread()
	err := do()
	return Thread() - begin, err
}

// Thread returns the CPU time that the calling thread has had.
func Thread() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		return 0 // it always has that clock
	}
	return time.Duration(now.Nano())
}
