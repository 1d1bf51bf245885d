package maps

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Grace returns when every program that was running when it was called has ended: what no map names any
// more can then be given out again. It takes about 10 ms.
//
// Programs run as RCU readers, and membarrier(MEMBARRIER_CMD_GLOBAL) waits for all of those
// (synchronize_rcu, kernel/sched/membarrier.c). It refuses where CPUs run without ticks (nohz_full) or a
// sandbox forbids it, and does nothing on a single CPU. Then a map of maps is updated, which waits in the same
// way (maybe_wait_bpf_programs, kernel/bpf/syscall.c) but takes three system calls more.
func Grace() error {
	if runtime.NumCPU() > 1 {
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno == 0 {
			return nil
		}
	}
	if err := graceByMap(); err != nil {
		return fmt.Errorf("wait for running programs: %w", err)
	}
	return nil
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1

// graceByMap waits by the update of a map of maps.
func graceByMap() (err error) {
	closing := func(m *ebpf.Map) { err = errors.Join(err, m.Close()) }
	definition := &ebpf.MapSpec{Name: "grace", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(definition)
	if err != nil {
		return fmt.Errorf("create an array: %w", err)
	}
	defer closing(inner)
	outer, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "grace_outer", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: definition,
	})
	if err != nil {
		return fmt.Errorf("create an array of maps: %w", err)
	}
	defer closing(outer)
	if err := outer.Put(uint32(0), inner); err != nil {
		return fmt.Errorf("update an array of maps: %w", err)
	}
	return nil
}
