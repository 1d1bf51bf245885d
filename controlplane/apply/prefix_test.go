package apply

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// moment is a step of a history: the services from then on.
type moment struct {
	what  string
	all   []compile.Service
	sweep bool // the flow tables are swept until all is given back, and nothing else
}

// prefixHistory has every kind of change, in maps that are so small that everything is soon used again.
func prefixHistory() []moment {
	three := at(web(3, 2, 3, 4), 3, 13)
	list := web(4, 4, 5)
	list.OutsideAlgorithm = maps.AlgorithmRandom
	two := at(web(1, 5, 6), 1, 14)
	inside := two // the other table stays, and two records share it while frontends are led from one to the other
	inside.Inside = inside.Inside[:1]
	sticky := web(2, 1, 6)
	sticky.AffinityTimeout = time.Hour
	apart := sticky // the one list of members shrinks, the other stays
	apart.Inside = apart.Inside[:1]
	heavy := list // the same backends, and weights make a longer table of them
	heavy.Inside = []compile.Backend{list.Inside[0], list.Inside[1]}
	heavy.Inside[0].Weight, heavy.Inside[1].Weight = 1, 3
	heavier := heavy
	heavier.Inside = slices.Clone(heavy.Inside)
	heavier.Inside[0].Weight = 2
	here := three // backends of this node, and one on another that tunnels lead to; then the other way round
	here.Inside = slices.Clone(three.Inside)
	here.Inside[0].Local, here.Inside[1].Local, here.Inside[2].Tunnel = true, true, true
	there := here
	there.Inside = slices.Clone(here.Inside)
	there.Inside[1].Local, there.Inside[1].Tunnel = false, true
	there.Inside[2].Local, there.Inside[2].Tunnel = true, false
	there.Outside, here.Outside = there.Inside, here.Inside
	return []moment{
		{what: "first services", all: []compile.Service{web(1, 1, 2), web(2), three}},
		{what: "endpoints come and go", all: []compile.Service{web(1, 2, 5), web(2, 1), at(web(3), 3, 13)}},
		{what: "a frontend moves, another service comes", all: []compile.Service{at(web(1, 2, 5), 1, 13), web(2, 1), web(3), list}},
		{what: "it moves back while both change", all: []compile.Service{web(1, 5, 6), web(2, 1), at(web(3, 7), 3, 13), list}},
		{what: "sweeps", sweep: true},
		{what: "a service goes and its frontend is inherited", all: []compile.Service{web(1, 5, 6), at(web(3, 7), 3, 13, 2), list}},
		{what: "it comes back", all: []compile.Service{two, web(2, 1, 6), three, list}},
		{what: "one table changes", all: []compile.Service{inside, web(2, 1, 6), three, list}},
		{what: "affinity comes", all: []compile.Service{inside, sticky, heavy}},
		{what: "affinity and weights change", all: []compile.Service{apart, heavier}},
		{what: "backends of this node come", all: []compile.Service{apart, here}},
		{what: "one leaves it, one comes", all: []compile.Service{web(2, 1, 6), there}},
		{what: "services go", all: []compile.Service{web(2, 1, 6)}},
		{what: "sweeps", sweep: true},
		{what: "others take their places", all: []compile.Service{web(5, 8, 9), at(web(6, 1, 9), 6, 1), web(2, 6)}},
		{what: "everything goes", all: nil},
	}
}

// life is one run of the history.
type life struct {
	t       *testing.T
	set     *maps.Set
	reader  *reader
	applier *Applier
	steps   *steps
	epoch   uint32
	before  []compile.Service
	after   []compile.Service
	held    map[found]view // what programs may be using since the last grace period
	what    string
}

func newLife(t *testing.T) *life {
	set := newSet(t, maps.Sizes{
		Services: 8, Frontends: 8, Backends: 16, SlotBlocks: 200, FlowsIPv4: 16, FlowsIPv6: 16, Embryos: 16, Devices: 4,
	})
	l := &life{t: t, set: set, reader: newReader(t, set)}
	l.start()
	return l
}

// start begins the life of an agent.
func (l *life) start() {
	l.applier, l.steps = stepped(l.t, l.set)
	l.steps.look = l.look
	l.applier.grace = func() error {
		l.look()
		l.held = nil
		return nil
	}
	l.held = nil
}

// live goes on to the next moment.
func (l *life) live(m moment) error {
	l.what = m.what
	if !m.sweep {
		l.before, l.after = l.after, m.all
		err := l.applier.Sync(m.all)
		return err
	}
	l.before = l.after
	for range sweepsBeforeReuse + 1 {
		sweep, err := l.applier.BeginSweep()
		if err != nil {
			return err
		}
		l.epoch++
		if err := l.applier.EndSweep(sweep, l.epoch); err != nil {
			return err
		}
	}
	return nil
}

// answers returns where frontends lead with these services.
func answers(all []compile.Service) map[maps.FrontendKey]answer {
	lead := map[maps.FrontendKey]answer{}
	for _, want := range all {
		answer := expected(want)
		for _, key := range frontendKeys(want) {
			lead[key] = answer
		}
	}
	return lead
}

// look checks that every frontend leads where it led before or leads afterwards, and that what programs have found
// since the last grace period is as they found it.
func (l *life) look() {
	l.t.Helper()
	before, after := answers(l.before), answers(l.after)
	if err := checkTargets(l.set, false); err != nil {
		l.t.Fatalf("%s, after %d writes: %v", l.what, l.steps.made, err)
	}
	if l.held == nil {
		l.held = map[found]view{}
	}
	for n := range 20 {
		key := vipKey(n)
		got, err := l.reader.look(key)
		if err != nil || got.answer != before[key] && got.answer != after[key] {
			l.t.Fatalf("%s, after %d writes: %s leads to %+v, %v; before %+v, afterwards %+v",
				l.what, l.steps.made, key.AddrPort(), got.answer, err, before[key], after[key])
		}
		if got.answer.there {
			l.held[got.found] = got
		}
	}
	for _, held := range l.held {
		var record maps.Service
		if err := l.set.Services.Lookup(held.index, &record); err != nil {
			l.t.Fatal(err)
		}
		got, err := l.reader.answer(held.record, 0)
		if record != held.record || err != nil || got != held.answer {
			l.t.Fatalf("%s, after %d writes: record %d is %+v and leads to %+v, %v; a program may still be using %+v",
				l.what, l.steps.made, held.index, record, got, err, held)
		}
	}
}

// The agent ends after each number of writes: what it leaves behind leads every frontend to an old or a new table, whole,
// and a successor makes of it what is wanted, be it the old or the new, and then finds nothing to write.
func TestEveryPrefixOfTheWritesIsWhole(t *testing.T) {
	whole := newLife(t)
	for _, m := range prefixHistory() {
		if err := whole.live(m); err != nil {
			t.Fatal(err)
		}
		checkServed(t, whole.set, whole.after...)
		if err := errors.Join(checkTargets(whole.set, true), checkFlags(whole.set, whole.after)); err != nil {
			t.Fatalf("%s: %v", m.what, err)
		}
	}
	total := whole.steps.made
	if total < 100 {
		t.Fatalf("the history has only %d writes", total)
	}
	for stop := range total {
		t.Run(fmt.Sprintf("before write %d", stop), func(t *testing.T) {
			t.Parallel() // most of it is waiting for the kernel
			l := newLife(t)
			l.steps.left = stop
			for _, m := range prefixHistory() {
				err := l.live(m)
				if errors.Is(err, errStopped) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			l.look()
			l.succeed(stop)
			if t.Failed() {
				t.Fatalf("of %d writes: %s", total, l.what)
			}
		})
	}
}

// succeed lets another agent take over what the stopped one has left.
func (l *life) succeed(stop int) {
	l.t.Helper()
	if stop%2 == 0 {
		l.before, l.after = l.after, l.before
	}
	l.applier, l.steps = stepped(l.t, l.set)
	mustSync(l.t, l.applier, l.after...)
	checkServed(l.t, l.set, l.after...)
	if err := errors.Join(checkTargets(l.set, true), checkFlags(l.set, l.after)); err != nil {
		l.t.Error(err)
	}
	again, _ := stepped(l.t, l.set)
	mustSync(l.t, again, l.after...)
	if writes := again.Writes(); writes != 0 {
		l.t.Errorf("%d writes of what the successor made right", writes)
	}
	for _, all := range [][]compile.Service{l.after, nil} {
		mustSync(l.t, l.applier, all...)
		sweepAll(l.t, l.applier, &l.epoch)
		checkTidy(l.t, l.applier, all)
	}
}
