package maps

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Grace returns when every program that was running when it was called has ended: what no map names any
// more can then be given out again. It takes about 10 ms.
//
// membarrier(MEMBARRIER_CMD_GLOBAL) is synchronize_rcu (kernel/sched/membarrier.c), and programs run as RCU
// readers. It is refused where CPUs run without ticks (nohz_full); then the thread visits each of its CPUs
// in turn, which it can only do between programs.
func Grace() error {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	if errno == 0 {
		return nil
	}
	if err := visitCPUs(); err != nil {
		return fmt.Errorf("wait for running programs: membarrier: %w; %w", errno, err)
	}
	return nil
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1

// visitCPUs runs for a moment on every CPU the process may use.
func visitCPUs() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("read the CPU affinity: %w", err)
	}
	defer unix.SchedSetaffinity(0, &allowed) //nolint:errcheck // the thread stays usable on one CPU
	for cpu := range 64 * len(allowed) {
		if !allowed.IsSet(cpu) {
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("move to CPU %d: %w", cpu, err)
		}
	}
	return nil
}
