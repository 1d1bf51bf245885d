package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	weirmaps "github.com/weir-lb/weir/maps"
)

var errNotYet = errors.New("not yet")

// programIDs returns the kernel's ids of programs, by name.
func programIDs(t *testing.T, p *Programs) map[string]ebpf.ProgramID {
	t.Helper()
	ids := map[string]ebpf.ProgramID{}
	for name, program := range p.ByName() {
		ids[name], _ = infoOf(t, program).ID()
	}
	return ids
}

// TestConstants finds each constant in some program: a name that is wrong would be ignored.
func TestConstants(t *testing.T) {
	for name := range testConstants.variables() {
		found := false
		for _, read := range objects() {
			spec, err := read()
			if err != nil {
				t.Fatal(err)
			}
			_, has := spec.Variables[name]
			found = found || has
		}
		if !found {
			t.Errorf("no program has the constant %s", name)
		}
	}
}

// TestLoad shows what the verifier has to do.
func TestLoad(t *testing.T) {
	mountBPFFS(t)
	set, err := weirmaps.New(smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	programs, err := Load(set, testConstants)
	if err != nil {
		t.Fatal(err)
	}
	defer programs.Close()
	counts, err := programs.VerifiedInstructions()
	if err != nil {
		t.Fatal(err)
	}
	for name := range programs.ByName() {
		if counts[name] == 0 || counts[name] > 1_000_000 {
			t.Errorf("%s: the verifier went through %d instructions", name, counts[name])
		}
		t.Logf("%-20s %7d instructions verified", name, counts[name])
	}
}

// TestAdopt opens what is pinned if it is the same, and replaces it if anything about it is another: the constants,
// the maps, a pin that is missing, an update that was interrupted.
func TestAdopt(t *testing.T) {
	pins := filepath.Join(mountBPFFS(t), "weir")
	other := testConstants
	other.SNATPortMax--
	set, err := weirmaps.Create(pins, smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { set.Close() }()
	var last map[string]ebpf.ProgramID
	for _, step := range []struct {
		name      string
		constants Constants
		before    func()
		same      bool
	}{
		{"the first time", testConstants, func() {}, false},
		{"again", testConstants, func() {}, true},
		{"with other constants", other, func() {}, false},
		{"again", other, func() {}, true},
		{"a pin is missing", other, func() { remove(t, filepath.Join(pins, programsDir, "pod_egress")) }, false},
		{"an update was interrupted", other, func() {
			if err := storeDigest(set, [32]byte{}); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"a map was made anew", other, func() {
			remove(t, filepath.Join(pins, "frontends"))
			set.Close()
			if set, err = weirmaps.Create(pins, smallSizes); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"again", other, func() {}, true},
	} {
		step.before()
		programs, err := Adopt(pins, set, step.constants)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		now := programIDs(t, programs)
		for name, id := range now {
			if same := last[name] == id; same != step.same {
				t.Errorf("%s: %s is the same: %t", step.name, name, same)
			}
		}
		last = now
		programs.Close()
		if left := slices.DeleteFunc(pinNames(t, pins, programsDir), func(name string) bool { _, known := now[name]; return known }); len(left) > 0 {
			t.Errorf("%s: pinned beside the programs: %q", step.name, left)
		}
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestAdoptKeepsRecord does not disturb what else the agent keeps for its successor.
func TestAdoptKeepsRecord(t *testing.T) {
	mountBPFFS(t)
	set, err := weirmaps.New(smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	before := weirmaps.AgentRecord{LayoutVersion: weirmaps.LayoutVersion, LastEdgeId: 77}
	if err := set.AgentState.Put(uint32(0), before); err != nil {
		t.Fatal(err)
	}
	if err := storeDigest(set, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	before.ProgramsDigest = [32]byte{1}
	var after weirmaps.AgentRecord
	if err := set.AgentState.Lookup(uint32(0), &after); err != nil || after != before {
		t.Errorf("record %+v (%v), want %+v", after, err, before)
	}
}

// TestVerifierError keeps the verifier's words where a caller finds them, and out of the message but for the last.
func TestVerifierError(t *testing.T) {
	mountBPFFS(t)
	set, err := weirmaps.New(smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	spec, err := loadPodEgress()
	if err != nil {
		t.Fatal(err)
	}
	instructions := spec.Programs["pod_egress"].Instructions
	spec.Programs["pod_egress"].Instructions = append(instructions[:0:0], instructions[len(instructions)-1]) // R0 is never set
	err = newPrograms(set, testConstants).load(spec)
	var refused *ebpf.VerifierError
	if !errors.As(err, &refused) || len(refused.Log) == 0 {
		t.Fatalf("error %v, want the verifier's", err)
	}
	if text := err.Error(); !strings.Contains(text, "pod_egress") || strings.Count(text, "\n") > 0 {
		t.Errorf("message %q", text)
	}
}
