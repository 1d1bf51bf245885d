package loader

import (
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Features are what the running kernel offers beyond what is required.
type Features struct {
	TCX              bool   // programs are attached with tcx (Linux 6.6), else with clsact filters
	XDPFrags         bool   // XDP programs may take packets in several buffers (Linux 5.18): those of a large MTU
	CsumIPv6Flag     bool   // bpf_l4_csum_replace knows BPF_F_IPV6
	Atomics          bool   // programs have atomic instructions other than the addition (Linux 5.12)
	SetRetval        bool   // cgroup programs have bpf_set_retval (Linux 5.18); without it what they refuse is EPERM
	JiffiesPerSecond uint32 // CONFIG_HZ
}

// Probe finds out what the kernel offers, and lets the process load programs. The error says in one sentence what is
// missing and what to do.
func Probe() (Features, error) {
	// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return Features{}, fmt.Errorf("lift the limit of locked memory: %w; run as root or with CAP_SYS_RESOURCE", err)
	}
	if err := features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectNeigh); err != nil {
		return Features{}, fmt.Errorf("the kernel has no bpf_redirect_neigh (%w): boot Linux 5.10 or newer", err)
	}
	f := Features{
		TCX:       haveTCX(),
		Atomics:   haveAtomics(),
		XDPFrags:  HaveXDPFrags(),
		SetRetval: features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval) == nil,
	}
	var err error
	if f.CsumIPv6Flag, err = haveCsumIPv6Flag(); err != nil {
		return f, fmt.Errorf("probe BPF_F_IPV6: %w", err)
	}
	if f.JiffiesPerSecond, err = jiffiesPerSecond(); err != nil {
		return f, fmt.Errorf("read the kernel's clock tick: %w", err)
	}
	return f, nil
}

// HaveXDPFrags tells whether XDP programs may take packets in several buffers: a helper came with that.
func HaveXDPFrags() bool { return features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen) == nil }

// TakeXDPFrags lets the XDP programs of an object take packets in several buffers. Those that call each other must be
// alike in this.
func TakeXDPFrags(spec *ebpf.CollectionSpec) {
	for _, program := range spec.Programs {
		if program.Type == ebpf.XDP {
			program.Flags |= unix.BPF_F_XDP_HAS_FRAGS
		}
	}
}

// haveTCX asks for the programs of the loopback device, which every network namespace has at index 1: BPF_PROG_QUERY
// refuses an attach type that it does not know.
func haveTCX() bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	return err == nil
}

// haveAtomics loads a program that swaps a word on its stack.
func haveAtomics() bool {
	program, err := newProbe(swapWord())
	if err != nil {
		return false
	}
	program.Close()
	return true
}

// swapWord swaps a word on the stack of its program.
func swapWord() asm.Instructions {
	swap := asm.CmpXchg.Mem(asm.RFP, asm.R1, asm.Word, -8)
	swap.Constant = int64(asm.CmpXchg >> 8) // where the library leaves this 0 the kernel is asked for an addition
	return asm.Instructions{
		asm.Mov.Imm(asm.R0, 0),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		swap,
		asm.Return(),
	}
}

// flagIPv6 is BPF_F_IPV6 of the UAPI, for bpf_l4_csum_replace (Linux 6.16, and stable branches).
const flagIPv6 = 1 << 7

// haveCsumIPv6Flag calls bpf_l4_csum_replace with the flag: a kernel without it returns -EINVAL.
func haveCsumIPv6Flag() (bool, error) {
	const pseudoHeader = 1 << 4 // BPF_F_PSEUDO_HDR
	result, err := runOnce(asm.Instructions{
		asm.Mov.Imm(asm.R2, 50), // offset of the checksum in the packet
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.Mov.Imm(asm.R5, pseudoHeader|flagIPv6),
		asm.FnL4CsumReplace.Call(),
		asm.Return(),
	})
	return result == 0, err
}

// runOnce loads a tc program, runs it over a packet of zeros, and returns its result.
func runOnce(instructions asm.Instructions) (uint32, error) {
	program, err := newProbe(instructions)
	if err != nil {
		return 0, err
	}
	defer program.Close()
	return program.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
}

func newProbe(instructions asm.Instructions) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "weir_probe", Type: ebpf.SchedCLS, Instructions: instructions, License: "Dual BSD/GPL",
	})
}

// jiffiesPerSecond returns the kernel's CONFIG_HZ. The resolution of the coarse clock is exactly one tick
// (TICK_NSEC, kernel/time/posix-timers.c).
func jiffiesPerSecond() (uint32, error) {
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return 0, err
	}
	if tick.Nano() <= 0 {
		return 0, fmt.Errorf("a tick of %d ns", tick.Nano())
	}
	return uint32(math.Round(float64(time.Second) / float64(tick.Nano()))), nil
}
