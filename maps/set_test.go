package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func tinySizes() Sizes {
	return Sizes{Services: 8, Frontends: 16, Backends: 32, SlotBlocks: 64, Sources: 16, FlowsIPv4: 128, FlowsIPv6: 128, Embryos: 256, Affinity: 64, Devices: 4}
}

// pinDir returns a directory in a bpffs of the test's own.
func pinDir(t *testing.T) string {
	t.Helper()
	bpffs := t.TempDir()
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a bpffs (as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(bpffs, 0); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(bpffs, "weir")
}

func mustCreate(t *testing.T, dir string, sizes Sizes) *Set {
	t.Helper()
	set, err := Create(dir, sizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

func TestCreateOpensWhatIsPinned(t *testing.T) {
	dir := pinDir(t)
	first := mustCreate(t, dir, tinySizes())
	if err := first.ServiceNames.Put(uint32(3), NameOf(2, "default/web")); err != nil {
		t.Fatal(err)
	}
	asked := tinySizes()
	asked.FlowsIPv4 *= 2
	for what, set := range map[string]*Set{"Create": mustCreate(t, dir, asked), "Open": mustOpen(t, dir)} {
		var name ServiceName
		if err := set.ServiceNames.Lookup(uint32(3), &name); err != nil || name.Id != 2 || name.String() != "default/web" {
			t.Errorf("%s: name is %d %q, %v", what, name.Id, name, err)
		}
		if set.Sizes() != tinySizes() {
			t.Errorf("%s: sizes are %+v, want those that were pinned, %+v", what, set.Sizes(), tinySizes())
		}
	}
}

func mustOpen(t *testing.T, dir string) *Set {
	t.Helper()
	set, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

func TestOpenOnlyReads(t *testing.T) {
	dir := pinDir(t)
	mustCreate(t, dir, tinySizes())
	set := mustOpen(t, dir)
	if err := set.Services.Put(uint32(1), Service{}); !errors.Is(err, unix.EPERM) {
		t.Errorf("a write through Open: %v", err)
	}
}

func TestTooManyServicesAreRefused(t *testing.T) {
	if _, err := New(Sizes{Services: 1 << 23}); err == nil || !strings.Contains(err.Error(), "8388607") {
		t.Errorf("New: %v", err)
	}
}

func TestOpenWithoutPins(t *testing.T) {
	if _, err := Open(pinDir(t)); !errors.Is(err, ErrNotPinned) {
		t.Errorf("Open of nothing: %v", err)
	}
}

// A maker that is killed leaves some of the maps. Its successor completes them, in sizes that fit each other.
func TestCreateCompletesWhatWasInterrupted(t *testing.T) {
	for missing := range len(specNames(t)) {
		dir := pinDir(t)
		whole := mustCreate(t, dir, tinySizes())
		var made []string
		for name := range whole.fields {
			made = append(made, name)
		}
		for _, name := range made[missing:] {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if missing < len(made) {
			if _, err := Open(dir); !errors.Is(err, ErrNotPinned) {
				t.Errorf("Open of the first %d: %v", missing, err)
			}
		}
		asked := tinySizes()
		asked.Services *= 4
		set := mustCreate(t, dir, asked)
		services, names := set.Services.MaxEntries(), set.ServiceNames.MaxEntries()
		if stats := set.ServiceStats.MaxEntries(); services != names || services != 2*stats {
			t.Errorf("after %d: %d services, %d names, %d counters", missing, services, names, stats)
		}
		mustOpen(t, dir)
	}
}

func specNames(t *testing.T) []string {
	t.Helper()
	definitions, err := specs(Sizes{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range definitions {
		if !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	return names
}

func TestSetHasEveryMap(t *testing.T) {
	set, err := New(tinySizes())
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	replacements := set.Replacements()
	for _, name := range specNames(t) {
		if replacements[name] == nil {
			t.Errorf("Set has no field for map %s", name)
		}
	}
}

func TestCreateRefusesAnotherShape(t *testing.T) {
	for what, definition := range map[string]ebpf.MapSpec{
		"value size": {Type: ebpf.Hash, KeySize: 20, ValueSize: 8, MaxEntries: 16},
		"key size":   {Type: ebpf.Hash, KeySize: 24, ValueSize: 16, MaxEntries: 16},
		"type":       {Type: ebpf.LRUHash, KeySize: 20, ValueSize: 16, MaxEntries: 16},
		"flags":      {Type: ebpf.Hash, KeySize: 20, ValueSize: 16, MaxEntries: 16, Flags: unix.BPF_F_NO_PREALLOC},
	} {
		dir := pinDir(t)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		other, err := ebpf.NewMap(&definition)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.Pin(filepath.Join(dir, "frontends")); err != nil {
			t.Fatal(err)
		}
		checkRefused(t, what, dir, "frontends")
		if _, err := os.Stat(filepath.Join(dir, "services")); err == nil {
			t.Errorf("%s: Create made maps beside the one it refuses", what)
		}
	}
}

func checkRefused(t *testing.T, what, dir, name string) {
	t.Helper()
	_, err := Create(dir, tinySizes())
	if !errors.Is(err, ErrLayout) {
		t.Fatalf("%s: Create: %v", what, err)
	}
	for _, part := range []string{name, "weir cleanup"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q does not mention %q", what, err, part)
		}
	}
}

func TestCreateRefusesAnotherLayout(t *testing.T) {
	dir := pinDir(t)
	set := mustCreate(t, dir, tinySizes())
	if err := set.AgentState.Put(uint32(0), AgentRecord{LayoutVersion: LayoutVersion + 1}); err != nil {
		t.Fatal(err)
	}
	checkRefused(t, "version", dir, "agent_state")
	if _, err := Open(dir); !errors.Is(err, ErrLayout) {
		t.Errorf("Open: %v", err)
	}
}

func TestEachVisitsAll(t *testing.T) {
	sizes := tinySizes()
	sizes.Frontends = 3 * eachBatch
	set, err := New(sizes)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	for i := range uint32(2*eachBatch + 5) {
		key := FrontendKey{Port: uint16(i), Protocol: uint8(i >> 16)}
		if err := set.Frontends.Put(key, key.Seal(FrontendNodePort, i, 1)); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[FrontendKey]bool{}
	err = Each(set.Frontends, func(key FrontendKey, value Frontend) bool {
		seen[key] = key.Generation(value) == 1
		return true
	})
	if err != nil || len(seen) != 2*eachBatch+5 {
		t.Errorf("%d elements visited, %v", len(seen), err)
	}
	visited := 0
	err = Each(set.Services, func(uint32, Service) bool { visited++; return visited < 3 })
	if err != nil || visited != 3 {
		t.Errorf("%d elements visited before the end, %v", visited, err)
	}
}

// Macros, and enums that no record has, are not in BTF: those that Go has again must be those of C.
func TestConstantsAreThoseOfC(t *testing.T) {
	header, err := os.ReadFile("../bpf/types.h")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{
		"WEIR_LAYOUT_VERSION":    LayoutVersion,
		"SLOTS_PER_BLOCK":        SlotsPerBlock,
		"SERVICE_NO_ENDPOINTS":   uint32(ServiceNoEndpoints),
		"VIP_ANSWERS_INSIDE":     VIPAnswersInside,
		"VIP_ANSWERS_OUTSIDE":    VIPAnswersOutside,
		"BACKEND_LOCAL":          BackendLocal,
		"BACKEND_TERMINATING":    BackendTerminating,
		"BACKEND_GONE":           BackendGone,
		"BACKEND_TUNNEL":         BackendTunnel,
		"FRONTEND_CLUSTER_IP":    uint32(FrontendClusterIP),
		"FRONTEND_NODE_PORT":     uint32(FrontendNodePort),
		"FRONTEND_LOAD_BALANCER": uint32(FrontendLoadBalancer),
		"FRONTEND_EXTERNAL_IP":   uint32(FrontendExternalIP),
		"FRONTEND_INDEX_MASK":    frontendIndexMask,
		"FRONTEND_KIND_SHIFT":    frontendKindShift,
		"DEVICE_NO_ETHERNET":     uint32(DeviceNoEthernet),
		"DEVICE_TO_PODS":         uint32(DeviceToPods),
	} {
		if got, err := macro(header, name); err != nil || got != want {
			t.Errorf("%s is %d in C (%v), %d in Go", name, got, err, want)
		}
	}
}

// macro returns the value of "#define NAME n", "#define NAME (1U << n)" or "NAME = n,"; n may be hexadecimal.
func macro(header []byte, name string) (uint32, error) {
	match := regexp.MustCompile(`\b` + name + `(?: =)? (\(1U << )?(\w+)`).FindSubmatch(header)
	if match == nil {
		return 0, fmt.Errorf("no such macro")
	}
	n, err := strconv.ParseUint(string(match[2]), 0, 32)
	if len(match[1]) > 0 {
		n = 1 << n
	}
	return uint32(n), err
}

func TestGrace(t *testing.T) {
	if err := Grace(); err != nil {
		t.Error(err)
	}
	if err := graceByMap(); err != nil {
		t.Errorf("without membarrier: %v", err)
	}
}

func BenchmarkGrace(b *testing.B) {
	for name, wait := range map[string]func() error{"membarrier": Grace, "map": graceByMap} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := wait(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
