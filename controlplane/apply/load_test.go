package apply

import (
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// What is in the maps may be wrong in every way: somebody wrote there. Sync makes it right, and nothing is lost.
func TestDamageIsMadeGood(t *testing.T) {
	all := []compile.Service{web(1, 1, 2), at(web(2, 2, 3), 2, 3), web(4)}
	put := func(m *ebpf.Map, key, value any) func() error {
		return func() error { return m.Put(key, value) }
	}
	for _, test := range []struct {
		what   string
		damage func(set *maps.Set, a *Applier) func() error
	}{
		{"a slot names another backend", func(set *maps.Set, a *Applier) func() error {
			inside := a.state.services[web(1).ID].current.value.Inside
			return func() error { return a.state.arena.Write(inside, []uint32{1, 1}) }
		}},
		{"a slot of a Maglev table names its neighbour's backend", func(set *maps.Set, a *Applier) func() error {
			outside := a.state.services[web(1).ID].current.outside
			slots := outside.slots()
			slots[0] = slots[slices.IndexFunc(slots, func(index uint32) bool { return index != slots[0] })]
			return func() error { return a.state.arena.Write(outside.at, slots) }
		}},
		{"a slot names no backend", func(set *maps.Set, a *Applier) func() error {
			inside := a.state.services[web(1).ID].current.value.Inside
			return func() error { return a.state.arena.Write(inside, []uint32{60, 1 << 31}) }
		}},
		{"a backend is another", func(set *maps.Set, a *Applier) func() error {
			return put(set.Backends, uint32(1), maps.Backend{Generation: 7, Port: 99, Protocol: 6})
		}},
		{"two backends are the same", func(set *maps.Set, a *Applier) func() error {
			return func() error {
				var first maps.Backend
				return errors.Join(set.Backends.Lookup(uint32(1), &first), set.Backends.Put(uint32(2), &first))
			}
		}},
		{"a frontend's seal does not fit", func(set *maps.Set, a *Applier) func() error {
			return put(set.Frontends, vipKey(1), maps.Frontend{Service: 1, Seal: 1})
		}},
		{"a frontend nobody wants, without a record", func(set *maps.Set, a *Applier) func() error {
			return put(set.Frontends, vipKey(9), maps.Frontend{Service: 1 << 30, Seal: 1})
		}},
		{"a frontend nobody wants, of a service", func(set *maps.Set, a *Applier) func() error {
			current := a.state.services[web(1).ID].current
			return put(set.Frontends, vipKey(9), vipKey(9).Seal(maps.FrontendClusterIP, current.index, current.value.Generation))
		}},
		{"a table lies outside of the arena", func(set *maps.Set, a *Applier) func() error {
			current := *a.state.services[web(1).ID].current
			current.value.Outside.Base = 1 << 31
			return put(set.Services, current.index, current.value)
		}},
		{"two services share a table", func(set *maps.Set, a *Applier) func() error {
			current, other := *a.state.services[web(1).ID].current, a.state.services[web(2).ID].current
			current.value.Outside = other.value.Outside
			return put(set.Services, current.index, current.value)
		}},
		{"two tables overlap", func(set *maps.Set, a *Applier) func() error {
			current, other := *a.state.services[web(1).ID].current, a.state.services[web(2).ID].current
			current.value.Outside.Base = other.value.Outside.Base + maps.SlotsPerBlock
			return put(set.Services, current.index, current.value)
		}},
		{"a name cannot be read", func(set *maps.Set, a *Applier) func() error {
			return put(set.ServiceNames, a.state.services[web(2).ID].current.index, maps.NameOf(1, "nonsense"))
		}},
		{"a name is missing", func(set *maps.Set, a *Applier) func() error {
			return func() error { return set.ServiceNames.Delete(a.state.services[web(2).ID].current.index) }
		}},
		{"a name is another's", func(set *maps.Set, a *Applier) func() error {
			return put(set.ServiceNames, a.state.services[web(2).ID].current.index, maps.NameOf(2, web(1).ID.String()))
		}},
		{"an id is another's", func(set *maps.Set, a *Applier) func() error {
			first, second := a.state.services[web(1).ID], *a.state.services[web(2).ID].current
			second.value.Id = first.id
			name := maps.NameOf(first.id, web(2).ID.String())
			return func() error {
				return errors.Join(set.Services.Put(second.index, second.value), set.ServiceNames.Put(second.index, name))
			}
		}},
		{"a name too many", func(set *maps.Set, a *Applier) func() error {
			return put(set.ServiceNames, uint32(50), maps.NameOf(1, web(1).ID.String()))
		}},
		{"a name too many, unreadable", func(set *maps.Set, a *Applier) func() error {
			return put(set.ServiceNames, uint32(0), maps.NameOf(1<<31, "nonsense"))
		}},
	} {
		t.Run(test.what, func(t *testing.T) {
			set := newSet(t, smallSizes())
			first, _ := stepped(t, set)
			mustSync(t, first, all...)
			if err := test.damage(set, first)(); err != nil {
				t.Fatal(err)
			}
			a, _ := stepped(t, set)
			mustSync(t, a, all...)
			checkServed(t, set, all...)
			var epoch uint32
			sweepAll(t, a, &epoch)
			checkTidy(t, a, all)
			again, w := stepped(t, set)
			mustSync(t, again, all...)
			if w.made != 0 {
				t.Errorf("%d writes of what was made good", w.made)
			}
			checkTidy(t, again, all)
		})
	}
}
