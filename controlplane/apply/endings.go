package apply

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// ending is what is known of an element of map endings: flows of a service to a backend that has left it.
type ending struct {
	due    time.Duration // by the clock of monotonic
	sweeps int           // that have gone by it since it was due
}

// endings are those of one service, or with id 0 those of all.
type endings map[maps.EndingKey]*ending

// monotonic returns the time that sweeps go by.
func monotonic() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}

// readEndings reads back which flows are to end.
func readEndings(set *maps.Set) (map[uint32]endings, error) {
	all := map[uint32]endings{}
	err := maps.Each(set.Endings, func(key maps.EndingKey, value maps.Ending) bool {
		addEnding(all, key, time.Duration(value.Due))
		return true
	})
	return all, err
}

func addEnding(all map[uint32]endings, key maps.EndingKey, due time.Duration) {
	if all[key.Service] == nil {
		all[key.Service] = endings{}
	}
	all[key.Service][key] = &ending{due: due}
}

// endLeft has the flows of a service end that go to backends which have left it, and those go on whose backend is back
// (rules D01 and D03). It is called before the tables change: what is written here must not be lost.
func (a *Applier) endLeft(s *service, want compile.Service) error {
	if !want.EndsFlows() {
		s.serving = nil
		return a.keepFlows(s.id)
	}
	serving := make(map[netip.AddrPort]struct{}, len(want.Serving))
	for _, address := range want.Serving {
		serving[address] = struct{}{}
	}
	for address := range s.mayHaveFlows() {
		if _, stays := serving[address]; stays {
			continue
		}
		if err := a.end(s.id, backendKeyOf(address, want.ID.Protocol), want.RemovedEndpoints.After); err != nil {
			return err
		}
	}
	s.serving = want.Serving
	return a.resume(s.id, want)
}

// mayHaveFlows returns the endpoints that flows of a service lead to: those that were serving or, where that is not known,
// those of its tables.
func (s *service) mayHaveFlows() map[netip.AddrPort]struct{} {
	addresses := make(map[netip.AddrPort]struct{}, len(s.serving))
	for _, address := range s.serving {
		addresses[address] = struct{}{}
	}
	for _, r := range append(s.others, s.current) {
		if r == nil {
			continue
		}
		for _, t := range r.tables() {
			for _, b := range t.backends {
				addresses[b.at()] = struct{}{}
			}
		}
	}
	return addresses
}

// endAll has all UDP flows of a service end, which is about to go. Those of TCP go on (rule X01).
func (a *Applier) endAll(s *service) error {
	if s.name.Protocol != compile.UDP {
		return a.keepFlows(s.id)
	}
	for address := range s.mayHaveFlows() {
		if err := a.end(s.id, backendKeyOf(address, s.name.Protocol), 0); err != nil {
			return err
		}
	}
	s.serving = nil
	return nil
}

// endOrphans has UDP flows end whose backend serves nobody. Whose flows those are is not known: the backend has left while
// no agent was looking.
func (a *Applier) endOrphans() error {
	serving := map[netip.AddrPort]struct{}{}
	for _, want := range a.wanted {
		if want.ID.Protocol != compile.UDP {
			continue
		}
		for _, address := range want.Serving {
			serving[address] = struct{}{}
		}
	}
	for _, b := range a.state.backends {
		_, serves := serving[b.at()]
		if b.leaving == nil || b.key().protocol != compile.UDP || serves {
			continue
		}
		if err := a.end(0, b.key(), 0); err != nil {
			return err
		}
	}
	return nil
}

// end has flows of a service to a backend end after a while. With id 0 it is those of all services.
func (a *Applier) end(service uint32, key backendKey, after time.Duration) error {
	b := a.state.backends[key]
	if b == nil || b.index == 0 {
		return nil // no flow names it
	}
	at := maps.EndingKey{Service: service, Backend: b.index, Generation: b.record.Generation}
	if _, known := a.state.endings[service][at]; known {
		return nil
	}
	now, err := monotonic()
	if err != nil {
		return err
	}
	due := now + after
	err = a.write.put(a.set.Endings, &at, &maps.Ending{Due: uint64(due)})
	if errors.Is(err, unix.E2BIG) {
		a.log.Warn("no room to end the flows of a removed backend: they end when they are idle", zap.Stringer("backend", key.at()))
		return nil
	}
	if err == nil {
		addEnding(a.state.endings, at, due)
	}
	return err
}

// keepFlows has all flows of a service go on.
func (a *Applier) keepFlows(service uint32) error {
	for key := range a.state.endings[service] {
		if err := a.forgetEnding(key); err != nil {
			return err
		}
	}
	return nil
}

// resume has flows go on whose backend is back, and lets those that wait end no later than the service asks for now.
func (a *Applier) resume(service uint32, want compile.Service) error {
	pending := a.state.endings[service]
	if len(pending) == 0 {
		return nil
	}
	for _, address := range want.Serving {
		b := a.state.backends[backendKeyOf(address, want.ID.Protocol)]
		if b == nil {
			continue
		}
		key := maps.EndingKey{Service: service, Backend: b.index, Generation: b.record.Generation}
		if pending[key] == nil {
			continue
		}
		if err := a.forgetEnding(key); err != nil {
			return err
		}
	}
	return a.hasten(pending, want.RemovedEndpoints.After)
}

// hasten brings forward what is due later than after a while.
func (a *Applier) hasten(pending endings, after time.Duration) error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	for key, e := range pending {
		if e.due <= now+after {
			continue
		}
		if err := a.write.put(a.set.Endings, &key, &maps.Ending{Due: uint64(now + after)}); err != nil {
			return err
		}
		e.due = now + after
	}
	return nil
}

// resumeOrphans has flows go on whose backend serves somebody again.
func (a *Applier) resumeOrphans(backends []*backend) error {
	for _, b := range backends {
		key := maps.EndingKey{Backend: b.index, Generation: b.record.Generation}
		if a.state.endings[0][key] == nil {
			continue
		}
		if err := a.forgetEnding(key); err != nil {
			return err
		}
	}
	return nil
}

func (a *Applier) forgetEnding(key maps.EndingKey) error {
	if err := a.write.delete(a.set.Endings, &key); err != nil {
		return err
	}
	delete(a.state.endings[key.Service], key)
	if len(a.state.endings[key.Service]) == 0 {
		delete(a.state.endings, key.Service)
	}
	return nil
}

// NextEnding returns for how long no flows are to end that no sweep has looked for; none: nothing is known of.
func (a *Applier) NextEnding() (wait time.Duration, some bool) {
	now, err := monotonic()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil || a.state == nil {
		return 0, false
	}
	for _, of := range a.state.endings {
		for _, e := range of {
			if e.sweeps == 0 && (!some || e.due-now < wait) {
				wait, some = e.due-now, true
			}
		}
	}
	return max(wait, 0), some
}

// dueEndings returns what a sweep that begins now will end.
func (s *state) dueEndings() ([]maps.EndingKey, error) {
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	var due []maps.EndingKey
	for _, of := range s.endings {
		for key, e := range of {
			if e.due <= now {
				due = append(due, key)
			}
		}
	}
	return due, nil
}

// endingsSwept notes that a sweep has gone by endings, and takes those out of the map that enough sweeps have.
func (a *Applier) endingsSwept(due []maps.EndingKey) error {
	for _, key := range due {
		e := a.state.endings[key.Service][key]
		if e == nil {
			continue
		}
		if e.sweeps++; e.sweeps < sweepsBeforeReuse {
			continue
		}
		if err := a.forgetEnding(key); err != nil {
			return err
		}
	}
	return nil
}
