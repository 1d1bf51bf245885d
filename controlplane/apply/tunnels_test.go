package apply

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// places returns a service whose nth backend is on this node ("h"), on another that tunnels lead to ("t"), or elsewhere.
func places(n int, where string) compile.Service {
	want := web(n, []byte("\x01\x02\x03\x04\x05\x06")[:len(where)]...)
	for i, place := range where {
		want.Inside[i].Local, want.Inside[i].Tunnel = place == 'h', place == 't'
	}
	want.Outside = want.Inside
	return want
}

// newTunnels returns an applier with DSR.
func newTunnels(t *testing.T, set *maps.Set, send *bool) *Applier {
	t.Helper()
	options := []Option{}
	if send != nil {
		options = append(options, Tunnels(func() bool { return *send }))
	}
	a, err := New(set, zap.NewNop(), options...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// wantPlaces checks the flags of the backends 10.0.0.1 and following, and where tunnels lead: "H" is a backend of this node
// that they lead to, "h" one that they do not lead to.
func wantPlaces(t *testing.T, set *maps.Set, want string) {
	t.Helper()
	got := []byte(strings.Repeat(" ", len(want)))
	err := maps.Each(set.Backends, func(index uint32, b maps.Backend) bool {
		if b.Generation == 0 {
			return true
		}
		var to uint32
		key := targetOf(b)
		led := set.TunnelTargets.Lookup(&key, &to) == nil && to == index
		place := map[uint32]byte{0: '-', maps.BackendLocal: 'h', maps.BackendTunnel: 't'}[b.Flags&(maps.BackendLocal|maps.BackendTunnel)]
		if led {
			place -= 'a' - 'A'
		}
		got[b.Address.Addr().As4()[3]-1] = place
		return true
	})
	if err != nil || string(got) != want {
		t.Errorf("backends are %q, want %q (%v)", got, want, err)
	}
	if count := countOf[maps.TunnelTarget, uint32](t, set.TunnelTargets, nil); count != strings.Count(want, "H") {
		t.Errorf("tunnels lead to %d backends, want %d", count, strings.Count(want, "H"))
	}
}

// TestTunnels follows where backends are, whether this node sends in tunnels, and agents with and without DSR.
func TestTunnels(t *testing.T) {
	set, send := newSet(t, smallSizes()), true
	a := newTunnels(t, set, &send)
	mustSync(t, a, places(1, "ht-t"))
	wantPlaces(t, set, "Ht-t")

	mustApply(t, a, []compile.Service{places(1, "thh-")})
	wantPlaces(t, set, "tHH-")

	// Services disagree: by tunnel only where all say so, here if one says so.
	mustApply(t, a, []compile.Service{places(2, "t-th")})
	wantPlaces(t, set, "tHHH")
	mustApply(t, a, []compile.Service{places(2, "-")})
	wantPlaces(t, set, "-HH-")
	mustApply(t, a, nil, places(2, "").ID)
	wantPlaces(t, set, "tHH-")

	// Other nodes do not take this one's tunnels, and then do.
	for _, step := range []struct {
		send bool
		want string
	}{{false, "-HH-"}, {true, "tHH-"}} {
		send = step.send
		if err := a.TunnelsChanged(); err != nil {
			t.Fatal(err)
		}
		wantPlaces(t, set, step.want)
		writes := a.Writes()
		if err := a.TunnelsChanged(); err != nil || a.Writes() != writes {
			t.Errorf("%d writes of what is right (%v)", a.Writes()-writes, err)
		}
	}

	// A successor has nothing to write; one without DSR takes it back, and the next puts it there again.
	for _, step := range []struct {
		send   *bool
		want   string
		writes uint64
	}{{&send, "tHH-", 0}, {nil, "-hh-", 3}, {&send, "tHH-", 3}} {
		a = newTunnels(t, set, step.send)
		mustSync(t, a, places(1, "thh-"))
		wantPlaces(t, set, step.want)
		if a.Writes() != step.writes {
			t.Errorf("%d writes, want %d", a.Writes(), step.writes)
		}
	}
}

// TestLeaving: packets are taken out of tunnels as long as others may send them, and none are sent.
func TestLeaving(t *testing.T) {
	set, yes := newSet(t, smallSizes()), true
	mustSync(t, newTunnels(t, set, &yes), places(1, "hht"))
	wantPlaces(t, set, "HHt")
	a, err := New(set, zap.NewNop(), Leaving(func() bool { return yes }))
	if err != nil {
		t.Fatal(err)
	}
	mustSync(t, a, places(1, "h-t"), places(2, "---h"))
	wantPlaces(t, set, "H--H")
	yes = false
	if err := a.TunnelsChanged(); err != nil {
		t.Fatal(err)
	}
	wantPlaces(t, set, "h--h")
	mustApply(t, a, []compile.Service{places(3, "----h")})
	wantPlaces(t, set, "h--hh")
}

// TestTargetsOutliveTheirEndpoint: flows may go on until the index is given back.
func TestTargetsOutliveTheirEndpoint(t *testing.T) {
	set, send, epoch := newSet(t, smallSizes()), true, uint32(0)
	a := newTunnels(t, set, &send)
	mustSync(t, a, places(1, "h"))
	mustSync(t, a)
	wantPlaces(t, set, "H")
	sweepAll(t, a, &epoch)
	wantPlaces(t, set, " ")
	checkTidy(t, a, nil)
}

// TestNoRoomForTargets: what has no room is told of, and comes when there is some.
func TestNoRoomForTargets(t *testing.T) {
	set, send := newSet(t, smallSizes()), true
	small, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: set.TunnelTargets.KeySize(), ValueSize: 4, MaxEntries: 2})
	if err = errors.Join(err, set.TunnelTargets.Close()); err != nil {
		t.Fatal(err)
	}
	set.TunnelTargets = small
	a := newTunnels(t, set, &send)
	err = a.Sync([]compile.Service{places(1, "hhh")})
	problems := a.Problems()
	const told = "1 endpoints of this node have no room beside 2 others"
	if err != nil || len(problems) != 1 || !strings.HasPrefix(problems[0].Message, told) {
		t.Fatalf("%v, %v; want %s", problems, err, told)
	}
	if count := countOf[maps.TunnelTarget, uint32](t, set.TunnelTargets, nil); count != 2 {
		t.Errorf("%d targets", count)
	}
	full := slices.Collect(mapKeys(a.state.targets.full))
	left := full[0].address.Addr().As4()[3]
	where := []byte("hhh")
	where[left%3] = '-' // one of the others
	err = a.Apply([]compile.Service{places(1, string(where))}, nil)
	if problems = a.Problems(); err != nil || len(problems) != 0 {
		t.Errorf("there is room: %v, %v", problems, err)
	}
	wantPlaces(t, set, fmt.Sprint(strings.ToUpper(string(where))))
}
