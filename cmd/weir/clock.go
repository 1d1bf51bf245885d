package main

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// clock turns the jiffies that programs note into ages.
type clock struct {
	now  uint32        // jiffies, low 32 bits
	tick time.Duration // from one jiffy to the next
}

// readClock asks the kernel for its jiffies. Only a program is told: this runs one that returns them.
func readClock() (clock, error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "weir_clock",
		Type:         ebpf.SocketFilter,
		License:      "GPL",
		Instructions: asm.Instructions{asm.FnJiffies64.Call(), asm.Return()},
	})
	if err != nil {
		return clock{}, fmt.Errorf("ask for the time of the programs: %w", err)
	}
	defer program.Close()
	now, _, err := program.Test(make([]byte, 14)) // the shortest packet that the kernel runs a program on
	if err != nil {
		return clock{}, fmt.Errorf("ask for the time of the programs: %w", err)
	}
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return clock{}, fmt.Errorf("ask for the length of a tick: %w", err)
	}
	return clock{now: now, tick: time.Duration(tick.Nano())}, nil
}

// since returns how long ago a moment was. One noted after the clock was read is now.
func (c clock) since(jiffies uint32) time.Duration {
	age := int32(c.now - jiffies)
	return time.Duration(max(age, 0)) * c.tick
}
