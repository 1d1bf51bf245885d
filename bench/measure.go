package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// measureKind measures everything with one kind of packet.
func (w *world) measureKind(ctx context.Context, options Options, k kind, flows uint32) ([]Result, error) {
	subjects := wanted(w.subjects(k, flows), options.Match)
	if len(subjects) == 0 {
		return nil, nil
	}
	defer func() {
		for _, s := range subjects {
			s.close()
		}
	}()
	for _, s := range subjects {
		if err := s.prepare(w); err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
	}
	if err := w.makeFlows(ctx, subjects, k, flows); err != nil {
		return nil, err
	}
	// Before anything is timed: each case is what it says it is.
	for _, s := range subjects {
		if _, err := s.turn(w, 1); err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
	}
	times, err := w.rounds(ctx, options, subjects)
	if err != nil {
		return nil, err
	}
	return results(subjects, times), w.forget()
}

// makeFlows establishes the flows that hits are of, then fills the table of embryos as on a node in use.
func (w *world) makeFlows(ctx context.Context, subjects []*subject, k kind, flows uint32) error {
	if err := fillFloor(w.floors, w.outside(k, floorFrontend(k.Family)), flows); err != nil {
		return err
	}
	known, fresh := byService(subjects)
	for _, s := range known {
		if err := w.establish(s, flows); err != nil {
			return fmt.Errorf("open flows for %s: %w", s, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	for _, s := range fresh {
		if _, err := s.turn(w, w.set.Embryos.MaxEntries()/2/uint32(len(fresh))); err != nil {
			return fmt.Errorf("open flows for %s: %w", s, err)
		}
	}
	return ctx.Err()
}

// byService returns one subject for each service: those of known flows, and those of new ones.
func byService(subjects []*subject) (known, fresh []*subject) {
	done := map[string]bool{}
	for _, s := range subjects {
		if s.service == nil || done[s.service.name] {
			continue
		}
		done[s.service.name] = true
		if s.service.fresh {
			fresh = append(fresh, s)
		} else {
			known = append(known, s)
		}
	}
	return known, fresh
}

// rounds returns the nanoseconds a packet took, by subject and round. The subjects take turns, so that what
// disturbs the machine for a while disturbs all of them; every other round in the opposite order.
func (w *world) rounds(ctx context.Context, options Options, subjects []*subject) ([][]float64, error) {
	times := make([][]float64, len(subjects))
	order := make([]int, len(subjects))
	for i := range order {
		order[i] = i
	}
	for range options.Rounds {
		for _, i := range order {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			count := options.Packets
			if subjects[i].Packet == packetNew {
				count /= 10
			}
			took, err := subjects[i].turn(w, count)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", subjects[i], err)
			}
			times[i] = append(times[i], took)
		}
		slices.Reverse(order)
	}
	return times, nil
}

// turn is run, again where a signal interrupted it.
func (s *subject) turn(w *world, count uint32) (float64, error) {
	const tries = 5
	var took float64
	var err error
	for range tries {
		if took, err = s.run(w, count); !errors.Is(err, errInterrupted) {
			break
		}
	}
	return took, err
}
