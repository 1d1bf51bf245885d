// Package sweep removes idle flows and finds out which services and backends flows still name. The work is
// done in the kernel (bpf/sweep.h), in bounded pieces; no flow is copied to user space.
package sweep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/controlplane/cputime"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

const (
	// leastPause is the shortest time between two sweeps,
	leastPause = 100 * time.Millisecond
	// busyShare as many times what the last one took, where that is longer: changes that come again and again shall not
	// keep a CPU busy.
	busyShare = 3
)

// Timeouts say how long a flow may be idle: neither side heard.
type Timeouts struct {
	Unanswered    time.Duration // no packet from the backend, or none from the client since
	TCP           time.Duration // established
	TCPHalfClosed time.Duration // one side has sent FIN
	TCPClosed     time.Duration // both sides have sent FIN, or one a reset; or of SCTP, one has begun to shut down
	UDP           time.Duration // both sides have been heard; also for foreign flows
	SCTP          time.Duration // established
	Foreign       time.Duration // TCP connections of the node itself and of masqueraded pods
}

// DefaultTimeouts are those that kube-proxy sets for conntrack, and the kernel's where it sets none, but for
// TCPClosed: at the kernel's two minutes, 2,200 connections a second would fill a table of 524,288 halves
// with closed ones. Half a minute is enough for the peer that has not seen the last acknowledgement.
func DefaultTimeouts() Timeouts {
	return Timeouts{
		Unanswered:    30 * time.Second,
		TCP:           24 * time.Hour,
		TCPHalfClosed: time.Hour,
		TCPClosed:     30 * time.Second,
		UDP:           2 * time.Minute,
		SCTP:          210 * time.Second,
		Foreign:       24 * time.Hour,
	}
}

// Options are what a Sweeper works with.
type Options struct {
	Set              *maps.Set
	Programs         *loader.Programs // those that sweep
	Applier          *apply.Applier
	Timeouts         Timeouts
	Interval         time.Duration // from the end of one sweep to the beginning of the next
	JiffiesPerSecond uint32
	Log              *zap.Logger
}

// Sweeper sweeps the flow tables again and again.
type Sweeper struct {
	options Options
	epoch   uint32
	loads   *maps.Loads
	touched chan struct{} // holds a token when flows are to end
}

// New returns a sweeper, whose epochs go on from its predecessor's: they are compared with what is in the maps.
func New(options Options) (*Sweeper, error) {
	var last maps.SweepSettings
	if err := options.Set.SweepConfig.Lookup(uint32(0), &last); err != nil {
		return nil, fmt.Errorf("read the last sweep's epoch: %w", err)
	}
	loads, err := maps.NewLoads(options.Set.BackendLoads)
	if err != nil {
		return nil, err
	}
	return &Sweeper{options: options, epoch: last.Epoch, loads: loads, touched: make(chan struct{}, 1)}, nil
}

// Touch says that flows are to end, and that the maps say so: a sweep is due at once.
func (s *Sweeper) Touch() {
	select {
	case s.touched <- struct{}{}:
	default:
	}
}

// Run sweeps until the context ends. A sweep that goes wrong is logged and tried again at the next interval.
func (s *Sweeper) Run(ctx context.Context) error {
	timer := time.NewTimer(s.options.Interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-s.touched:
		}
		start := time.Now()
		if err := s.Once(ctx); err != nil && ctx.Err() == nil {
			s.options.Log.Warn("sweep the flow tables", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(leastPause, busyShare*time.Since(start))):
		}
		timer.Reset(s.pause())
	}
}

// pause returns how long it is until the next sweep, unless one is asked for.
func (s *Sweeper) pause() time.Duration {
	if wait, some := s.options.Applier.NextEnding(); some {
		return min(s.options.Interval, wait)
	}
	return s.options.Interval
}

// Once makes one whole sweep. Embryos come first: a flow moves from there to the flow table, never back, so
// none is missed.
func (s *Sweeper) Once(ctx context.Context) error {
	start := time.Now()
	sweep, err := s.options.Applier.BeginSweep()
	if err != nil {
		return err
	}
	if err := s.configure(sweep.Endings()); err != nil {
		return err
	}
	if err := s.options.Set.PlantMilestones(); err != nil {
		return err
	}
	if err := s.loads.Begin(); err != nil {
		return err
	}
	var done work
	for _, part := range s.parts() {
		walked, err := walk(ctx, part.program, part.table)
		if err != nil {
			return fmt.Errorf("sweep %s: %w", part.table, err)
		}
		done.add(walked)
	}
	if err := s.loads.End(); err != nil {
		return err
	}
	s.options.Log.Debug("flow tables swept", zap.Uint32("epoch", s.epoch), zap.Duration("took", time.Since(start)),
		zap.Int("pieces", done.pieces), zap.Duration("longest", done.longest))
	return s.options.Applier.EndSweep(sweep, s.epoch)
}

// part is one walk of a sweep.
type part struct {
	program *ebpf.Program
	table   *ebpf.Map
}

// parts returns the walks in their order.
func (s *Sweeper) parts() []part {
	programs, set := s.options.Programs, s.options.Set
	return []part{
		{programs.SweepEmbryos, set.Embryos},
		{programs.SweepFlowsIPv4, set.FlowsIPv4},
		{programs.SweepFlowsIPv6, set.FlowsIPv6},
	}
}

// configure begins a new epoch, and tells the programs it, the timeouts in jiffies, and whether flows are to end.
func (s *Sweeper) configure(endings int) error {
	s.epoch++
	if s.epoch == 0 {
		s.epoch++ // 0 is that of what was never named
	}
	jiffies := func(d time.Duration) uint32 {
		return uint32(d * time.Duration(s.options.JiffiesPerSecond) / time.Second)
	}
	timeouts := s.options.Timeouts
	settings := maps.SweepSettings{
		Epoch:                s.epoch,
		TimeoutUnanswered:    jiffies(timeouts.Unanswered),
		TimeoutTcp:           jiffies(timeouts.TCP),
		TimeoutTcpHalfClosed: jiffies(timeouts.TCPHalfClosed),
		TimeoutTcpClosed:     jiffies(timeouts.TCPClosed),
		TimeoutUdp:           jiffies(timeouts.UDP),
		TimeoutSctp:          jiffies(timeouts.SCTP),
		TimeoutForeign:       jiffies(timeouts.Foreign),
		Endings:              uint32(endings),
	}
	if err := s.options.Set.SweepConfig.Put(uint32(0), &settings); err != nil {
		return fmt.Errorf("write the sweep's settings: %w", err)
	}
	return nil
}

// work is what a walk took.
type work struct {
	pieces  int
	longest time.Duration // of the pieces, in CPU time: for so long a CPU did nothing else
}

func (w *work) add(other work) {
	w.pieces += other.pieces
	w.longest = max(w.longest, other.longest)
}

// walk runs the iterator over a whole table. The program writes a byte now and then (bpf/sweep.h), and a read ends
// when its buffer is full: with a buffer of one byte each read is a bounded piece. After each it rests as long as the
// piece took, so that a sweep takes half a CPU at most.
func walk(ctx context.Context, program *ebpf.Program, table *ebpf.Map) (done work, err error) {
	runtime.LockOSThread() // whose CPU time is measured
	defer runtime.UnlockOSThread()
	iterator, err := link.AttachIter(link.IterOptions{Program: program, Map: table})
	if err != nil {
		return done, fmt.Errorf("attach the iterator: %w", err)
	}
	defer func() { err = errors.Join(err, iterator.Close()) }()
	pieces, err := iterator.Open()
	if err != nil {
		return done, fmt.Errorf("open the iterator: %w", err)
	}
	defer func() { err = errors.Join(err, pieces.Close()) }()
	var piece [1]byte
	for ctx.Err() == nil {
		start := cputime.Thread()
		_, err := pieces.Read(piece[:])
		took := cputime.Thread() - start
		done.pieces++
		done.longest = max(done.longest, took)
		if errors.Is(err, io.EOF) {
			return done, nil
		}
		if err != nil {
			return done, fmt.Errorf("run the iterator: %w", err)
		}
		time.Sleep(took)
	}
	return done, ctx.Err()
}
