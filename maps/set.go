package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"github.com/cilium/ebpf"
)

// LayoutVersion is WEIR_LAYOUT_VERSION of bpf/types.h.
const LayoutVersion = 1

// Errors that callers tell apart.
var (
	// ErrLayout says that pinned maps were made by a version with other records.
	ErrLayout = errors.New("pinned maps are of another version")
	// ErrNotPinned says that there are no maps where they were looked for.
	ErrNotPinned = errors.New("no maps are pinned")
)

// Set is every map of one Weir instance; bpf/maps.h describes them.
type Set struct {
	AgentState   *ebpf.Map `ebpf:"agent_state"`
	BackendStats *ebpf.Map `ebpf:"backend_stats"`
	BackendUsage *ebpf.Map `ebpf:"backend_usage"`
	Backends     *ebpf.Map `ebpf:"backends"`
	Counters     *ebpf.Map `ebpf:"counters"`
	Devices      *ebpf.Map `ebpf:"devices"`
	Embryos      *ebpf.Map `ebpf:"embryos"`
	Flows        *ebpf.Map `ebpf:"flows"`
	Frontends    *ebpf.Map `ebpf:"frontends"`
	NodeAddrs    *ebpf.Map `ebpf:"node_addrs"`
	ServiceNames *ebpf.Map `ebpf:"service_names"`
	ServiceStats *ebpf.Map `ebpf:"service_stats"`
	ServiceUsage *ebpf.Map `ebpf:"service_usage"`
	Services     *ebpf.Map `ebpf:"services"`
	Slots        *ebpf.Map `ebpf:"slots"`
	SweepConfig  *ebpf.Map `ebpf:"sweep_config"`
	XDPDevices   *ebpf.Map `ebpf:"xdp_devices"`
}

// Sizes are the capacities of the maps that grow with the cluster and its traffic, in entries.
type Sizes struct {
	Services   uint32 // Service ports of one family; records and frontends get twice as many
	Frontends  uint32
	Backends   uint32
	SlotBlocks uint32 // of 16 slots each
	Flows      uint32 // halves: two for each connection
	Embryos    uint32 // halves
	Devices    uint32
}

// DefaultSizes fit a node of a cluster with 10,000 Services.
func DefaultSizes() Sizes {
	return Sizes{
		Services:   65536,
		Frontends:  131072,
		Backends:   131072,
		SlotBlocks: 262144,
		Flows:      524288,
		Embryos:    131072,
		Devices:    16384,
	}
}

// entries returns the capacity of each map that the sizes decide. A changed service needs a second record
// until the old one is out of use, hence twice as many records as services.
func (s Sizes) entries() map[string]uint32 {
	return map[string]uint32{
		"frontends":     s.Frontends,
		"services":      2 * s.Services,
		"service_names": 2 * s.Services,
		"service_stats": s.Services,
		"service_usage": s.Services,
		"backends":      s.Backends,
		"backend_stats": s.Backends,
		"backend_usage": s.Backends,
		"slots":         s.SlotBlocks,
		"flows":         s.Flows,
		"embryos":       s.Embryos,
		"devices":       s.Devices,
	}
}

// specs returns the map definitions with the sizes applied.
func specs(s Sizes) (map[string]*ebpf.MapSpec, error) {
	collection, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read the map definitions: %w", err)
	}
	for name, entries := range s.entries() {
		if entries > 0 {
			collection.Maps[name].MaxEntries = entries
		}
	}
	return collection.Maps, nil
}

// fields yields the name of every map and where its handle is kept.
func (s *Set) fields(yield func(name string, handle **ebpf.Map) bool) {
	value := reflect.ValueOf(s).Elem()
	for i := range value.NumField() {
		name := value.Type().Field(i).Tag.Get("ebpf")
		if !yield(name, value.Field(i).Addr().Interface().(**ebpf.Map)) {
			return
		}
	}
}

// New creates the maps without pinning them, for tests and benchmarks.
func New(sizes Sizes) (*Set, error) {
	definitions, err := specs(sizes)
	if err != nil {
		return nil, err
	}
	set := &Set{}
	for name, handle := range set.fields {
		if *handle, err = ebpf.NewMap(definitions[name]); err != nil {
			set.Close()
			return nil, fmt.Errorf("create map %s: %w", name, err)
		}
	}
	return set, set.stamp()
}

// Create opens the maps pinned in dir and creates those that are missing. A map that is there keeps its
// size, whatever sizes says. ErrLayout: one has another shape, and nothing was changed.
func Create(dir string, sizes Sizes) (*Set, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the pin directory: %w", err)
	}
	definitions, err := specs(sizes)
	if err != nil {
		return nil, err
	}
	set, missing, err := openPinned(dir, definitions)
	if err != nil {
		return nil, err
	}
	for name, handle := range missing {
		if *handle, err = createPinned(filepath.Join(dir, name), definitions[name]); err != nil {
			set.Close()
			return nil, fmt.Errorf("create map %s: %w", name, err)
		}
	}
	return set, set.stamp()
}

// Open opens the maps pinned in dir, all of them. ErrNotPinned: there are none; ErrLayout: they are of
// another version.
func Open(dir string) (*Set, error) {
	definitions, err := specs(Sizes{})
	if err != nil {
		return nil, err
	}
	set, missing, err := openPinned(dir, definitions)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		set.Close()
		return nil, fmt.Errorf("%w in %s", ErrNotPinned, dir)
	}
	return set, nil
}

// openPinned opens what is pinned in dir and says what is missing.
func openPinned(dir string, definitions map[string]*ebpf.MapSpec) (*Set, map[string]**ebpf.Map, error) {
	set, missing := &Set{}, make(map[string]**ebpf.Map)
	for name, handle := range set.fields {
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			missing[name] = handle
			continue
		}
		if err != nil {
			set.Close()
			return nil, nil, fmt.Errorf("open map %s: %w", name, err)
		}
		*handle = pinned
		if err := sameShape(pinned, definitions[name]); err != nil {
			set.Close()
			return nil, nil, fmt.Errorf("map %s in %s: %w: %w", name, dir, ErrLayout, err)
		}
	}
	if err := set.checkVersion(); err != nil {
		set.Close()
		return nil, nil, fmt.Errorf("maps in %s: %w", dir, err)
	}
	return set, missing, nil
}

func createPinned(path string, definition *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(definition)
	if err != nil {
		return nil, err
	}
	if err := m.Pin(path); err != nil {
		m.Close()
		return nil, fmt.Errorf("pin: %w", err)
	}
	return m, nil
}

// sameShape compares everything but the size, which is the operator's to choose.
func sameShape(pinned *ebpf.Map, definition *ebpf.MapSpec) error {
	if pinned.Type() != definition.Type || pinned.KeySize() != definition.KeySize ||
		pinned.ValueSize() != definition.ValueSize {
		return fmt.Errorf("it is a %s of %d and %d bytes, not a %s of %d and %d", pinned.Type(), pinned.KeySize(),
			pinned.ValueSize(), definition.Type, definition.KeySize, definition.ValueSize)
	}
	return nil
}

// checkVersion refuses maps that another layout was written into. 0 is a set whose maker was interrupted.
func (s *Set) checkVersion() error {
	if s.AgentState == nil {
		return nil
	}
	var record AgentRecord
	if err := s.AgentState.Lookup(uint32(0), &record); err != nil {
		return fmt.Errorf("read the layout version: %w", err)
	}
	if record.LayoutVersion != 0 && record.LayoutVersion != LayoutVersion {
		return fmt.Errorf("%w: layout %d, this is %d", ErrLayout, record.LayoutVersion, LayoutVersion)
	}
	return nil
}

// stamp notes the layout version; a set that has it is complete.
func (s *Set) stamp() error {
	var record AgentRecord
	if err := s.AgentState.Lookup(uint32(0), &record); err != nil {
		return fmt.Errorf("read the layout version: %w", err)
	}
	if record.LayoutVersion == LayoutVersion {
		return nil
	}
	record.LayoutVersion = LayoutVersion
	if err := s.AgentState.Put(uint32(0), &record); err != nil {
		return fmt.Errorf("write the layout version: %w", err)
	}
	return nil
}

// Replacements returns the maps by name, for ebpf.CollectionOptions.MapReplacements.
func (s *Set) Replacements() map[string]*ebpf.Map {
	replacements := make(map[string]*ebpf.Map)
	for name, handle := range s.fields {
		replacements[name] = *handle
	}
	return replacements
}

// Close closes the handles. Pinned maps live on.
func (s *Set) Close() error {
	var failed error
	for _, handle := range s.fields {
		if *handle != nil {
			failed = errors.Join(failed, (*handle).Close())
		}
	}
	return failed
}
