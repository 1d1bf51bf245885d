// Package sweep removes idle flows and finds out which services and backends flows still name. The work is
// done in the kernel (bpf/sweep.h), in bounded pieces; no flow is copied to user space.
package sweep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/maps"
)

// Timeouts say how long a flow may be idle.
type Timeouts struct {
	Unanswered time.Duration // no packet from the backend, or none from the client since
	TCP        time.Duration // established
	TCPClosing time.Duration // both sides have sent FIN, or one a reset
	UDP        time.Duration // both sides have been heard
	Foreign    time.Duration
}

// DefaultTimeouts are those that kube-proxy sets for conntrack, and the kernel's where it sets none.
func DefaultTimeouts() Timeouts {
	return Timeouts{
		Unanswered: 30 * time.Second,
		TCP:        24 * time.Hour,
		TCPClosing: 2 * time.Minute,
		UDP:        2 * time.Minute,
		Foreign:    24 * time.Hour,
	}
}

// Options are what a Sweeper works with.
type Options struct {
	Set              *maps.Set
	Flows, Embryos   *ebpf.Program // the iterators sweep_flows and sweep_embryos
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
}

// New returns a sweeper, whose epochs go on from its predecessor's: they are compared with what is in the maps.
func New(options Options) (*Sweeper, error) {
	var last maps.SweepSettings
	if err := options.Set.SweepConfig.Lookup(uint32(0), &last); err != nil {
		return nil, fmt.Errorf("read the last sweep's epoch: %w", err)
	}
	return &Sweeper{options: options, epoch: last.Epoch}, nil
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
		}
		if err := s.Once(ctx); err != nil && ctx.Err() == nil {
			s.options.Log.Warn("sweep the flow tables", zap.Error(err))
		}
		timer.Reset(s.options.Interval)
	}
}

// Once makes one whole sweep. Embryos come first: a flow moves from there to the flow table, never back, so
// none is missed.
func (s *Sweeper) Once(ctx context.Context) error {
	sweep, err := s.options.Applier.BeginSweep()
	if err != nil {
		return err
	}
	s.epoch++
	if s.epoch == 0 {
		s.epoch++ // 0 is what was never named
	}
	if err := s.configure(); err != nil {
		return err
	}
	if err := walk(ctx, s.options.Embryos, s.options.Set.Embryos); err != nil {
		return fmt.Errorf("sweep embryos: %w", err)
	}
	if err := walk(ctx, s.options.Flows, s.options.Set.Flows); err != nil {
		return fmt.Errorf("sweep flows: %w", err)
	}
	return s.options.Applier.EndSweep(sweep, s.epoch)
}

// configure tells the programs the epoch and the timeouts in jiffies.
func (s *Sweeper) configure() error {
	jiffies := func(d time.Duration) uint32 {
		return uint32(d * time.Duration(s.options.JiffiesPerSecond) / time.Second)
	}
	timeouts := s.options.Timeouts
	settings := maps.SweepSettings{
		Epoch:             s.epoch,
		TimeoutUnanswered: jiffies(timeouts.Unanswered),
		TimeoutTcp:        jiffies(timeouts.TCP),
		TimeoutTcpClosing: jiffies(timeouts.TCPClosing),
		TimeoutUdp:        jiffies(timeouts.UDP),
		TimeoutForeign:    jiffies(timeouts.Foreign),
	}
	if err := s.options.Set.SweepConfig.Put(uint32(0), &settings); err != nil {
		return fmt.Errorf("write the sweep's settings: %w", err)
	}
	return nil
}

// walk runs the iterator over the whole map. The program writes a byte for every few thousand elements;
// reading one byte at a time makes each read a piece of work of that size.
func walk(ctx context.Context, program *ebpf.Program, table *ebpf.Map) error {
	iterator, err := link.AttachIter(link.IterOptions{Program: program, Map: table})
	if err != nil {
		return fmt.Errorf("attach the iterator: %w", err)
	}
	defer iterator.Close()
	pieces, err := iterator.Open()
	if err != nil {
		return fmt.Errorf("open the iterator: %w", err)
	}
	defer pieces.Close()
	var piece [1]byte
	for ctx.Err() == nil {
		_, err := pieces.Read(piece[:])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("run the iterator: %w", err)
		}
	}
	return ctx.Err()
}
