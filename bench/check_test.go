package bench

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// inWorld calls f on a thread of its own in a world for ten flows.
func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	needRoot(t)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here, and its network namespace with it
		w, err := newWorld(10)
		if err != nil {
			done <- err
			return
		}
		defer func() { done <- w.close() }()
		f(w)
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// subjectNamed returns the subject of that name, with its harness.
func subjectNamed(t *testing.T, w *world, k kind, flows uint32, name string) *subject {
	t.Helper()
	for _, s := range w.subjects(k, flows) {
		if s.String() != name {
			continue
		}
		if err := s.prepare(w); err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		t.Cleanup(s.close)
		return s
	}
	t.Errorf("there is no case %s", name)
	return nil
}

// Whatever a packet should not have met is noticed: a benchmark that measures something else must not pass.
func TestRunNoticesWhatIsNotMeant(t *testing.T) {
	k := kind{compile.IPv4, compile.TCP}
	inWorld(t, func(w *world) {
		for _, test := range []struct {
			name, complaint string
			spoil           func(s *subject)
		}{
			{"xdp/node/hit/local/IPv4/TCP/10", "opened a flow", func(*subject) {}}, // no flow is known yet
			{"xdp/node/new/local/IPv4/TCP/10", "100 were translated and 1 opened a flow", func(s *subject) {
				s.harness.close()
				var err error
				s.harness, err = newHarness(xdp, s.program, s.packets, 1, s.ifindex)
				must(t, err)
			}},
			{"xdp/node/no-service/IPv4/TCP/10", "no backend", func(s *subject) { s.expect.backendPort = 80 }},
			{"tc/node/no-service/IPv4/TCP/10", "verdict -1, not 7", func(s *subject) { s.expect.verdict = tc.forward() }},
			{"tc/pod/new/IPv4/TCP/10", "not left alone", func(s *subject) { s.expect.backendPort = 0 }},
			{"xdp/node/new/remote/IPv4/TCP/10", "comes from", func(s *subject) { s.expect.forwards = false }},
			{"tc/node/new/local/IPv4/TCP/10", "not from a port of SNAT", func(s *subject) { s.expect.forwards = true }},
			{"xdp/node/new/remote/IPv4/TCP/10", "a frame from", func(s *subject) { s.expect.addressed = false }},
			{"xdp/bench/floor-hit/IPv4/TCP/10", "verdict 2, not 1", func(*subject) {}}, // its table is empty
		} {
			if err := runSpoilt(t, w, k, test.name, test.spoil); err == nil || !strings.Contains(err.Error(), test.complaint) {
				t.Errorf("%s: run says %v, not %q", test.name, err, test.complaint)
			}
		}
	})
}

// runSpoilt runs a subject after something has been done to it: anew, from an empty world, if a signal comes between.
func runSpoilt(t *testing.T, w *world, k kind, name string, spoil func(s *subject)) (err error) {
	t.Helper()
	for range 5 {
		must(t, w.forget())
		s := subjectNamed(t, w, k, 10, name)
		if s == nil {
			return nil
		}
		spoil(s)
		if _, err = s.run(w, 100); !errors.Is(err, errInterrupted) {
			return err
		}
	}
	return err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// What is made in bulk is what the programs would have made: a flow established by its packets has the same halves.
func TestEstablishedAsByPackets(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, k := range kinds() {
			must(t, w.forget())
			s := subjectNamed(t, w, k, 1, "xdp/node/hit/local/"+k.Family.String()+"/"+k.Protocol.String()+"/1")
			if s == nil {
				return
			}
			must(t, w.establish(s, 1))
			bulk := halves(t, w)
			must(t, w.forget())

			// The client opens it, the backend answers, the client goes on.
			opening := *s
			opening.packets.syn = true
			must(t, opening.prepare(w))
			_, err := opening.harness.run(1)
			must(t, err)
			opening.close()
			answered(t, w)
			_, err = s.harness.run(1)
			must(t, err)
			if packets := halves(t, w); len(bulk) != 2 || !equalHalves(bulk, packets) {
				t.Errorf("%v: in bulk %+v, by packets %+v", k, bulk, packets)
			}
		}
	})
}

// answered is what the backend's answer does to the only flow: tc egress of the node sets one field.
func answered(t *testing.T, w *world) {
	t.Helper()
	var key maps.FlowKey
	var half maps.Flow
	for all := w.set.Embryos.Iterate(); all.Next(&key, &half); {
		if half.Half == maps.FlowHalfReverse {
			half.State = maps.FlowAnswered
			must(t, w.set.Embryos.Put(key, half))
		}
	}
}

// halves returns the flow table, without what differs by time and chance.
func halves(t *testing.T, w *world) map[maps.FlowKey]maps.Flow {
	t.Helper()
	all := map[maps.FlowKey]maps.Flow{}
	must(t, w.set.FlowTable().Each(func(key maps.FlowKey, half maps.Flow) bool {
		half.LastSeen = 0
		all[key] = half
		return true
	}))
	must(t, w.forget())
	return all
}

func equalHalves(a, b map[maps.FlowKey]maps.Flow) bool {
	if len(a) != len(b) {
		return false
	}
	for key, half := range a {
		if b[key] != half {
			return false
		}
	}
	return true
}
