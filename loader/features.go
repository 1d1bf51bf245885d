package loader

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Features are what the running kernel offers beyond what is required.
type Features struct {
	TCX              bool   // programs are attached with tcx (Linux 6.6), else with clsact filters
	CsumIPv6Flag     bool   // bpf_l4_csum_replace knows BPF_F_IPV6
	SetRetval        bool   // cgroup programs have bpf_set_retval (Linux 5.18); without it what they refuse is EPERM
	JiffiesPerSecond uint32 // CONFIG_HZ, measured
}

// Probe finds out what the kernel offers, and lets the process load programs. The error says in one sentence what is
// missing and what to do. It takes about 60 ms, for the clock to be measured.
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
		SetRetval: features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval) == nil,
	}
	var err error
	if f.CsumIPv6Flag, err = haveCsumIPv6Flag(); err != nil {
		return f, fmt.Errorf("probe BPF_F_IPV6: %w", err)
	}
	if f.JiffiesPerSecond, err = measureJiffies(); err != nil {
		return f, fmt.Errorf("measure the kernel's clock tick: %w", err)
	}
	return f, nil
}

// haveTCX asks for the programs of the loopback device, which every network namespace has at index 1: BPF_PROG_QUERY
// refuses an attach type that it does not know.
func haveTCX() bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	return err == nil
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

// measureJiffies returns how many jiffies the kernel counts in a second.
func measureJiffies() (uint32, error) {
	program, err := newProbe(asm.Instructions{asm.FnJiffies64.Call(), asm.Return()})
	if err != nil {
		return 0, err
	}
	defer program.Close()
	packet := &ebpf.RunOptions{Data: make([]byte, 64)}
	return measureTicks(func() (uint32, error) { return program.Run(packet) })
}

const (
	// measureFor is long enough to tell the tick rates apart that kernels are built with.
	measureFor = 50 * time.Millisecond
	// tickLimit is longer than any kernel's tick.
	tickLimit = time.Second
)

// measureTicks measures between the moments at which the counter steps, several times where the machine was too busy
// to tell.
func measureTicks(read func() (uint32, error)) (uint32, error) {
	var rate float64
	for range 5 {
		first, start, err := nextTick(read)
		if err != nil {
			return 0, err
		}
		time.Sleep(measureFor)
		last, end, err := nextTick(read)
		if err != nil {
			return 0, err
		}
		rate = float64(last-first) / end.Sub(start).Seconds()
		if hz, ok := builtHZ(rate); ok {
			return hz, nil
		}
	}
	return 0, fmt.Errorf("%.0f ticks a second, which no kernel is built with; is the machine overloaded?", rate)
}

// nextTick waits until the counter steps, and returns what it is then, and when that was.
func nextTick(read func() (uint32, error)) (uint32, time.Time, error) {
	before, err := read()
	if err != nil {
		return 0, time.Time{}, err
	}
	for deadline := time.Now().Add(tickLimit); time.Now().Before(deadline); {
		now, err := read()
		if err != nil {
			return 0, time.Time{}, err
		}
		if now != before {
			return now, time.Now(), nil
		}
	}
	return 0, time.Time{}, errors.New("jiffies stand still")
}

// builtHZ returns the CONFIG_HZ nearest to a measured rate, if one is near.
func builtHZ(rate float64) (uint32, bool) {
	for _, hz := range []uint32{100, 200, 250, 300, 500, 1000} {
		if math.Abs(rate-float64(hz)) < 0.08*float64(hz) {
			return hz, true
		}
	}
	return 0, false
}
