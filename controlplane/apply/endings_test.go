package apply

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// dns is web with UDP, whose endpoints serve all; those after the first few are in no table.
func dns(n, listed int, hosts ...byte) compile.Service {
	want := web(n, hosts[:listed]...)
	want.ID.Protocol = compile.UDP
	for _, host := range hosts {
		want.Serving = append(want.Serving, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, host}), 8080))
	}
	return want
}

// resets is web whose connections are reset, after a while, when their endpoint leaves.
func resets(n int, after time.Duration, hosts ...byte) compile.Service {
	want := web(n, hosts...)
	want.RemovedEndpoints = compile.RemovedEndpoints{End: true, After: after}
	for _, backend := range want.Inside {
		want.Serving = append(want.Serving, backend.Address)
	}
	return want
}

// endingsOf describes map endings: the service, which may be gone, and the last byte of the backend's address.
func endingsOf(t testing.TB, a *Applier) []string {
	t.Helper()
	names := map[uint32]string{0: "any"}
	err := maps.Each(a.set.ServiceNames, func(_ uint32, name maps.ServiceName) bool {
		id, err := compile.ParseID(name.String())
		names[name.Id] = id.Name
		return err == nil
	})
	var described []string
	err = errors.Join(err, maps.Each(a.set.Endings, func(key maps.EndingKey, _ maps.Ending) bool {
		var backend maps.Backend
		if err := a.set.Backends.Lookup(key.Backend, &backend); err != nil {
			t.Error(err)
		}
		described = append(described, fmt.Sprintf("%s %d", names[key.Service], backend.Address.Bytes[15]))
		if backend.Generation != key.Generation {
			t.Errorf("%+v is of another backend: %+v", key, backend)
		}
		return true
	}))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(described)
	return described
}

func wantEndings(t testing.TB, a *Applier, want ...string) {
	t.Helper()
	if got := endingsOf(t, a); !slices.Equal(got, want) {
		t.Errorf("flows end of %q, want %q", got, want)
	}
}

// Rules D01 and D03: the flows of UDP end when their endpoint serves no longer, those of TCP where the Service asks for it.
func TestFlowsEndWithTheirEndpoint(t *testing.T) {
	a := newApplier(t, newSet(t, smallSizes()))
	keeps := web(3, 1, 2)
	mustSync(t, a, dns(1, 2, 1, 2), resets(2, 0, 1, 2), keeps)
	wantEndings(t, a)
	mustApply(t, a, []compile.Service{dns(1, 1, 1, 2), resets(2, 0, 1), web(3, 1)})
	wantEndings(t, a, "web2 2") // that of web1 serves yet
	mustApply(t, a, []compile.Service{dns(1, 1, 1)})
	wantEndings(t, a, "web1 2", "web2 2")

	mustApply(t, a, []compile.Service{dns(1, 2, 1, 2), resets(2, 0, 1, 2)}) // they are back
	wantEndings(t, a)

	mustApply(t, a, []compile.Service{dns(1, 0)}) // nobody is left, and then the service goes too
	wantEndings(t, a, "web1 1", "web1 2")
	mustApply(t, a, []compile.Service{dns(1, 2, 1, 2)})
	mustApply(t, a, nil, dns(1, 0).ID, keeps.ID, resets(2, 0).ID)
	wantEndings(t, a, "web1 1", "web1 2")
}

// An endpoint that has left the tables before, and serves at last no longer.
func TestFlowsEndWithATerminatingEndpoint(t *testing.T) {
	a := newApplier(t, newSet(t, smallSizes()))
	mustSync(t, a, dns(1, 2, 1, 2))
	mustApply(t, a, []compile.Service{dns(1, 1, 1, 2)})
	mustApply(t, a, []compile.Service{dns(1, 1, 1)})
	wantEndings(t, a, "web1 2")
}

// What sweeps have gone by is forgotten, but not what is due later.
func TestEndingsAreForgotten(t *testing.T) {
	a := newApplier(t, newSet(t, smallSizes()))
	mustSync(t, a, dns(1, 2, 1, 2), resets(2, time.Hour, 1, 2))
	mustApply(t, a, []compile.Service{dns(1, 1, 1), resets(2, time.Hour, 1)})
	wantEndings(t, a, "web1 2", "web2 2")
	if wait, some := a.NextEnding(); !some || wait != 0 {
		t.Errorf("the next is due in %s (%v)", wait, some)
	}
	sweep, err := a.BeginSweep()
	if err != nil || sweep.Endings() != 1 {
		t.Errorf("a sweep has %d endings to look for (%v), want 1", sweep.Endings(), err)
	}
	if err := a.EndSweep(sweep, 1); err != nil {
		t.Fatal(err)
	}
	if wait, some := a.NextEnding(); !some || wait < 59*time.Minute || wait > time.Hour {
		t.Errorf("after a sweep the next is due in %s (%v)", wait, some)
	}
	wantEndings(t, a, "web1 2", "web2 2")
	if sweep, err = a.BeginSweep(); err != nil {
		t.Fatal(err)
	}
	for index := range uint32(10) { // flows are there still
		if err := a.set.BackendUsage.Put(index, uint32(2)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.EndSweep(sweep, 2); err != nil {
		t.Fatal(err)
	}
	wantEndings(t, a, "web2 2")
	// It was to drain for an hour, and is in a hurry now.
	mustApply(t, a, []compile.Service{resets(2, time.Second, 1)})
	if wait, some := a.NextEnding(); !some || wait > time.Second {
		t.Errorf("in a hurry the next is due in %s (%v)", wait, some)
	}
	keeps := web(2, 1)
	mustApply(t, a, []compile.Service{keeps})
	wantEndings(t, a)
}

// What has left while no agent was there is found by the next one.
func TestFlowsEndAfterARestart(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	mustSync(t, a, dns(1, 3, 1, 2, 3), dns(2, 1, 1))
	mustApply(t, a, []compile.Service{dns(1, 2, 1, 2, 3)}) // 3 is terminating
	wantEndings(t, a)

	b := newApplier(t, set)
	mustSync(t, b, dns(1, 1, 1))
	wantEndings(t, b, "any 2", "any 3", "web1 2", "web2 1")
	c := newApplier(t, set) // as its predecessor: they are not forgotten before they are swept
	mustSync(t, c, dns(1, 1, 1))
	wantEndings(t, c, "any 2", "any 3", "web1 2", "web2 1")
	mustApply(t, c, []compile.Service{dns(1, 2, 1, 2), dns(2, 1, 1)})
	wantEndings(t, c, "any 3")
}

// Interrupted at any write, an agent leaves what makes its successor end the same flows.
func TestEndingsOutliveInterruptions(t *testing.T) {
	for _, removed := range []bool{false, true} {
		for left := 0; ; left++ {
			set := newSet(t, smallSizes())
			a, w := stepped(t, set)
			mustSync(t, a, dns(1, 2, 1, 2))
			w.left = left
			changed, gone, want := []compile.Service{dns(1, 1, 1)}, []compile.ID(nil), []string{"web1 2"}
			if removed {
				changed, gone, want = nil, []compile.ID{dns(1, 0).ID}, []string{"web1 1", "web1 2"}
			}
			err := a.Apply(changed, gone)
			b := newApplier(t, set)
			mustSync(t, b, changed...)
			ends := slices.DeleteFunc(endingsOf(t, b), func(e string) bool { return e[:3] == "any" })
			if !slices.Equal(ends, want) {
				t.Errorf("removed %v, after %d writes: flows end of %q, want %q", removed, left, ends, want)
			}
			if err == nil {
				break
			}
		}
	}
}
