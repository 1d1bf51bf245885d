package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// measureKind measures everything with one kind of packet.
func (w *world) measureKind(ctx context.Context, options Options, k kind, flows uint32) ([]Result, error) {
	subjects := w.subjects(k, flows)
	if !choose(subjects, options.Match) {
		return nil, nil
	}
	if options.Progress != nil {
		options.Progress(fmt.Sprintf("%s %s, known flows: %d", k.Family, k.Protocol, flows))
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
	var all []Result
	for _, group := range groups(subjects) {
		measured, err := w.measureGroup(ctx, options, group, flows)
		if err != nil {
			return nil, err
		}
		for _, result := range measured {
			if _, again := find(all, result.Case); !again {
				all = append(all, result)
			}
		}
	}
	return all, nil
}

// choose marks the subjects that match, and those that they are compared with. It reports whether there are any.
func choose(subjects []*subject, match func(Case) bool) bool {
	hooks := map[string]bool{}
	for _, s := range subjects {
		s.wanted = match == nil || match(s.Case)
		hooks[s.Hook] = hooks[s.Hook] || s.wanted
	}
	for _, s := range subjects {
		s.wanted = s.wanted || s.group == groupAll && hooks[s.Hook]
	}
	return hooks[string(xdp)] || hooks[string(tc)]
}

// groups returns what is measured together: packets to one kind of backend, and what they are compared with. So the
// flow table holds no more flows than the case says. Groups that nothing is wanted of are left out.
func groups(subjects []*subject) [][]*subject {
	names := []string{groupLocal, groupRemote, groupPod}
	names = slices.DeleteFunc(names, func(name string) bool {
		return !slices.ContainsFunc(subjects, func(s *subject) bool { return s.wanted && s.group == name })
	})
	if len(names) == 0 {
		names = []string{groupLocal} // for nothing but what others are compared with
	}
	all := make([][]*subject, len(names))
	for i, name := range names {
		for _, s := range subjects {
			if s.group == name || s.group == groupAll {
				all[i] = append(all[i], s)
			}
		}
	}
	return all
}

// measureGroup measures the subjects of a group that are wanted.
func (w *world) measureGroup(ctx context.Context, options Options, group []*subject, flows uint32) ([]Result, error) {
	if err := w.forget(); err != nil {
		return nil, err
	}
	if err := w.makeFlows(ctx, group, flows); err != nil {
		return nil, err
	}
	group = slices.DeleteFunc(group, func(s *subject) bool { return !s.wanted })
	// Before anything is timed: each case is what it says it is.
	for _, s := range group {
		if _, err := s.turn(w, 1); err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
	}
	times, err := w.rounds(ctx, options, group)
	if err != nil {
		return nil, err
	}
	return results(group, times), nil
}

// makeFlows establishes the flows that hits are of, then fills the table of embryos as on a node in use.
func (w *world) makeFlows(ctx context.Context, subjects []*subject, flows uint32) error {
	if err := fillFloor(w.floors, subjects[0].packets, flows); err != nil {
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
