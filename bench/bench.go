// Package bench measures the datapath programs: the real ones, over maps of their own, with BPF_PROG_TEST_RUN.
// Beside them, in the same run, it measures floors, the least that any load balancer does with a packet of a flow
// it knows; see ../docs/benchmarks.md.
package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Options say what is measured, and for how long.
type Options struct {
	Flows   []uint32        // for each number everything is measured, with so many known flows of each service
	Rounds  int             // how often each case is measured; all take their turns in each round
	Packets uint32          // of a turn; of new flows, which cost more, a tenth as many
	Match   func(Case) bool // which cases are wanted; nil: all

	// Progress is told what comes next: "IPv4 TCP, known flows: 65536". May be nil.
	Progress func(what string)
}

// FlowsMax is the largest number of flows: the source ports and addresses that make flows different are 31 bits,
// but the tables of more do not fit a machine.
const FlowsMax = 4 << 20

// Check says what makes no sense.
func (o Options) Check() error {
	if len(o.Flows) == 0 || o.Rounds < 1 || o.Packets < 10 {
		return errors.New("at least one number of flows, one round and ten packets are needed")
	}
	for _, flows := range o.Flows {
		if flows == 0 || flows > FlowsMax {
			return fmt.Errorf("%d flows: it must be 1 to %d", flows, FlowsMax)
		}
	}
	return nil
}

// ErrNoCase says that no case matches.
var ErrNoCase = errors.New("no case matches")

// Run measures. It needs root. When the context ends it returns its error, within a turn.
func Run(ctx context.Context, options Options) (*Report, error) {
	if err := options.Check(); err != nil {
		return nil, err
	}
	report, err := newReport(options)
	if err != nil {
		return nil, err
	}
	finished := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, and the network namespace it is in, end with the goroutine.
		runtime.LockOSThread()
		finished <- report.measure(ctx, options)
	}()
	if err := <-finished; err != nil {
		return nil, err
	}
	if len(report.Results) == 0 {
		return nil, ErrNoCase
	}
	return report, nil
}

// measure fills the report. It moves the calling thread to a network namespace.
func (r *Report) measure(ctx context.Context, options Options) error {
	if err := stayOnCPU(); err != nil {
		return err
	}
	for _, flows := range options.Flows {
		if err := r.measureFlows(ctx, options, flows); err != nil {
			return err
		}
	}
	return nil
}

// measureFlows measures everything with one number of flows.
func (r *Report) measureFlows(ctx context.Context, options Options, flows uint32) (err error) {
	w, err := newWorld(flows)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for _, k := range kinds() {
		results, err := w.measureKind(ctx, options, k, flows)
		if err != nil {
			return err
		}
		r.Results = append(r.Results, results...)
	}
	return nil
}

// stayOnCPU binds the calling thread to the last CPU it may use: interrupts prefer the first.
func stayOnCPU() error {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("read the CPU affinity: %w", err)
	}
	last := 0
	for cpu := range 64 * len(allowed) {
		if allowed.IsSet(cpu) {
			last = cpu
		}
	}
	one.Set(last)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("stay on CPU %d: %w", last, err)
	}
	return nil
}
