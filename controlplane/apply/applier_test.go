package apply

import (
	"fmt"
	"net/netip"
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

func newSet(t *testing.T, sizes maps.Sizes) *maps.Set {
	t.Helper()
	set, err := maps.New(sizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

func smallSizes() maps.Sizes {
	return maps.Sizes{Services: 64, Frontends: 64, Backends: 64, SlotBlocks: 1024, Flows: 64, Embryos: 64, Devices: 16}
}

func newApplier(t *testing.T, set *maps.Set) *Applier {
	t.Helper()
	a, err := New(set, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// web returns a service on VIP 10.96.0.n:80 with backends 10.0.0.x:8080.
func web(n int, hosts ...byte) compile.Service {
	desired := compile.Service{
		ID:               compile.ID{Namespace: "default", Name: fmt.Sprintf("web%d", n), Protocol: compile.TCP, Family: compile.IPv4},
		Frontends:        []compile.Frontend{{Kind: compile.ClusterIP, Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, byte(n)}), 80)}},
		OutsideAlgorithm: maps.AlgorithmMaglev,
		NoEndpoints:      len(hosts) == 0,
	}
	for _, host := range hosts {
		backend := compile.Backend{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, host}), 8080)}
		desired.Inside = append(desired.Inside, backend)
		desired.Outside = append(desired.Outside, backend)
	}
	return desired
}

func mustSync(t *testing.T, a *Applier, all ...compile.Service) {
	t.Helper()
	problems, err := a.Sync(all)
	if err != nil || len(problems) > 0 {
		t.Fatalf("Sync: %v, %v", problems, err)
	}
}

func TestSyncIsReadBackWithoutAWrite(t *testing.T) {
	set := newSet(t, smallSizes())
	all := []compile.Service{web(1, 1, 2), web(2), web(3, 2, 3, 4)}
	mustSync(t, newApplier(t, set), all...)

	again := newApplier(t, set)
	mustSync(t, again, all...)
	if writes := again.Writes(); writes != 0 {
		t.Errorf("a second applier wrote %d elements that were right", writes)
	}
}

func TestIndicesComeBackAfterASweepWithoutFlows(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	// Far more changes than there are indices: they must be given out again.
	for round := range 400 {
		problems, err := a.Apply([]compile.Service{web(1, byte(round), byte(round+1))}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(problems) > 0 {
			t.Fatalf("round %d: %v", round, problems)
		}
		if round%16 != 0 {
			continue
		}
		sweep, err := a.BeginSweep()
		if err != nil {
			t.Fatal(err)
		}
		if err := a.EndSweep(sweep, uint32(round+1)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABackendThatAFlowNamesKeepsItsIndex(t *testing.T) {
	set := newSet(t, smallSizes())
	a := newApplier(t, set)
	mustSync(t, a, web(1, 1))
	index := a.state.backends[backendKey{netip.MustParseAddrPort("10.0.0.1:8080"), compile.TCP}].index
	mustSync(t, a, web(1, 2))

	for epoch := uint32(1); epoch <= 2; epoch++ {
		sweep, err := a.BeginSweep()
		if err != nil {
			t.Fatal(err)
		}
		if epoch == 1 { // as the sweep does for a flow it meets
			if err := set.BackendUsage.Put(index, epoch); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.EndSweep(sweep, epoch); err != nil {
			t.Fatal(err)
		}
		var record maps.Backend
		if err := set.Backends.Lookup(index, &record); err != nil {
			t.Fatal(err)
		}
		if named := record.Generation != 0; named != (epoch == 1) {
			t.Errorf("epoch %d: backend kept %v", epoch, named)
		}
	}
}

func TestAServiceWithoutRoomIsReportedAndTheOthersWork(t *testing.T) {
	sizes := smallSizes()
	sizes.Backends = 4 // three, as index 0 is none
	set := newSet(t, sizes)
	a := newApplier(t, set)
	problems, err := a.Sync([]compile.Service{web(1, 1, 2), web(2, 3, 4), web(3, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if len(problems) != 1 || problems[0].Object != "Service default/web2" {
		t.Errorf("problems: %v", problems)
	}
	if len(a.state.services) != 2 {
		t.Errorf("%d services are programmed, want 2", len(a.state.services))
	}
	// Room comes with the next change and sweep.
	if _, err := a.Apply(nil, []compile.ID{web(1).ID, web(3).ID}); err != nil {
		t.Fatal(err)
	}
	sweep, err := a.BeginSweep()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.EndSweep(sweep, 1); err != nil {
		t.Fatal(err)
	}
	if _, placed := a.state.services[web(2).ID]; !placed {
		t.Error("the service did not get the room that came free")
	}
}
