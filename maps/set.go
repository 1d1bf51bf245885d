package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// LayoutVersion is WEIR_LAYOUT_VERSION of bpf/types.h.
const LayoutVersion = 6

// Errors that callers tell apart.
var (
	// ErrLayout says that pinned maps are not as this version makes them.
	ErrLayout = errors.New("made by another version of weir")
	// ErrNotPinned says that there are no maps where they were looked for.
	ErrNotPinned = errors.New("no maps are pinned")
)

// Set is every map of one Weir instance; bpf/maps.h describes them.
type Set struct {
	AgentState    *ebpf.Map `ebpf:"agent_state"`
	Affinity      *ebpf.Map `ebpf:"affinity"`
	BackendLoads  *ebpf.Map `ebpf:"backend_loads"`
	BackendHealth *ebpf.Map `ebpf:"backend_health"`
	BackendStats  *ebpf.Map `ebpf:"backend_stats"`
	BackendUsage  *ebpf.Map `ebpf:"backend_usage"`
	Backends      *ebpf.Map `ebpf:"backends"`
	ClusterBounds *ebpf.Map `ebpf:"cluster_bounds"`
	ClusterIPs    *ebpf.Map `ebpf:"cluster_ips"`
	Counters      *ebpf.Map `ebpf:"counters"`
	Devices       *ebpf.Map `ebpf:"devices"`
	Embryos       *ebpf.Map `ebpf:"embryos"`
	Endings       *ebpf.Map `ebpf:"endings"`
	FlowsIPv4     *ebpf.Map `ebpf:"flows_ipv4"`
	FlowsIPv6     *ebpf.Map `ebpf:"flows_ipv6"`
	Fragments     *ebpf.Map `ebpf:"fragments"`
	Frontends     *ebpf.Map `ebpf:"frontends"`
	HeldFragments *ebpf.Map `ebpf:"held_fragments"`
	InsideSources *ebpf.Map `ebpf:"inside_sources"`
	LastMove      *ebpf.Map `ebpf:"last_move"`
	LeftCgroups   *ebpf.Map `ebpf:"left_cgroups"`
	LiveConfig    *ebpf.Map `ebpf:"live_config"`
	LocalVIPs     *ebpf.Map `ebpf:"local_vips"`
	Namespaces    *ebpf.Map `ebpf:"namespaces"`
	NodeAddrs     *ebpf.Map `ebpf:"node_addrs"`
	ServiceNames  *ebpf.Map `ebpf:"service_names"`
	ServiceStats  *ebpf.Map `ebpf:"service_stats"`
	ServiceUsage  *ebpf.Map `ebpf:"service_usage"`
	Services      *ebpf.Map `ebpf:"services"`
	Slots         *ebpf.Map `ebpf:"slots"`
	SocketFlows   *ebpf.Map `ebpf:"socket_flows"`
	SocketPeers   *ebpf.Map `ebpf:"socket_peers"`
	SocketLatests *ebpf.Map `ebpf:"socket_latests"`
	Sources       *ebpf.Map `ebpf:"sources"`
	SweepConfig   *ebpf.Map `ebpf:"sweep_config"`
	TunnelSources *ebpf.Map `ebpf:"tunnel_sources"`
	TunnelExempt  *ebpf.Map `ebpf:"tunnel_exempt"`
	TunnelTargets *ebpf.Map `ebpf:"tunnel_targets"`
	VIPs          *ebpf.Map `ebpf:"vips"`
	XDPDevices    *ebpf.Map `ebpf:"xdp_devices"`
	XFRMPrefixes  *ebpf.Map `ebpf:"xfrm_prefixes"`

	live sync.Mutex // guards changes of live_config
}

// New creates the maps without pinning them, for tests and benchmarks.
func New(sizes Sizes) (*Set, error) {
	definitions, err := specs(sizes)
	if err != nil {
		return nil, err
	}
	set := &Set{}
	for name, handle := range set.fields {
		if *handle, err = create(name, definitions[name]); err != nil {
			return nil, errors.Join(fmt.Errorf("create map %s: %w", name, err), set.Close())
		}
	}
	return set, nil
}

// Create opens the maps pinned in dir and creates those that are missing. A map that is there keeps its
// size, whatever sizes says; so does one that must fit it. ErrLayout: one is not as this version makes it,
// and nothing was changed. Interrupted, it is completed by the next call.
func Create(dir string, sizes Sizes) (*Set, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the pin directory: %w", err)
	}
	set, err := openPinned(dir, nil)
	if errors.Is(err, ErrLayout) {
		return nil, fmt.Errorf("%w: run `weir cleanup`, which ends all flows, and start again", err)
	}
	if err != nil {
		return nil, err
	}
	if err := set.createMissing(dir, sizes.keeping(set)); err != nil {
		return nil, errors.Join(err, set.Close())
	}
	return set, nil
}

// Open opens the maps pinned in dir, all of them, for reading. ErrNotPinned: they are not all there;
// ErrLayout: they are of another version.
func Open(dir string) (*Set, error) {
	set, err := openPinned(dir, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	for name, handle := range set.fields {
		if *handle == nil {
			return nil, errors.Join(fmt.Errorf("%w: %s is not in %s", ErrNotPinned, name, dir), set.Close())
		}
	}
	return set, nil
}

// openPinned opens what is pinned in dir.
func openPinned(dir string, options *ebpf.LoadPinOptions) (*Set, error) {
	set := &Set{}
	for name, handle := range set.fields {
		pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), options)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open map %s: %w", name, err), set.Close())
		}
		*handle = pinned
	}
	if err := set.check(); err != nil {
		return nil, errors.Join(fmt.Errorf("maps in %s: %w", dir, err), set.Close())
	}
	return set, nil
}

// check compares what is there with what this version makes.
func (s *Set) check() error {
	if err := s.checkVersion(); err != nil {
		return err
	}
	definitions, err := specs(Sizes{}.keeping(s))
	if err != nil {
		return err
	}
	for name, handle := range s.fields {
		if *handle == nil {
			continue
		}
		if err := definitions[name].Compatible(*handle); err != nil {
			return fmt.Errorf("map %s (%w) was %w", name, err, ErrLayout)
		}
	}
	return nil
}

// checkVersion refuses maps whose records mean something else.
func (s *Set) checkVersion() error {
	if s.AgentState == nil {
		return nil
	}
	var record AgentRecord
	if err := s.AgentState.Lookup(uint32(0), &record); err != nil {
		return fmt.Errorf("map %s (%w) was %w", bpfMapAgentState, err, ErrLayout)
	}
	if record.LayoutVersion != LayoutVersion {
		return fmt.Errorf("map %s (layout %d, this is %d) was %w",
			bpfMapAgentState, record.LayoutVersion, LayoutVersion, ErrLayout)
	}
	return nil
}

// createMissing creates the maps that are not there, and when there is memory for all of them pins them: agent_state,
// with the version in it, before all others.
func (s *Set) createMissing(dir string, sizes Sizes) error {
	definitions, err := specs(sizes)
	if err != nil {
		return err
	}
	var missing []string
	for name, handle := range s.fields {
		if *handle != nil {
			continue
		}
		missing = append(missing, name)
		if *handle, err = create(name, definitions[name]); err != nil {
			return tooLarge(name, definitions[name].MaxEntries, err)
		}
	}
	for name, handle := range s.fields {
		if !slices.Contains(missing, name) {
			continue
		}
		if err := (*handle).Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// tooLarge says why a map could not be created, and what to do where that is its size.
func tooLarge(name string, entries uint32, err error) error {
	if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("create map %s: %w", name, err)
	}
	return fmt.Errorf("create map %s with room for %d: %w; start the agent with smaller --max sizes", name, entries, err)
}

// create makes one map. agent_state gets the version at once, so that it is never seen without.
func create(name string, definition *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(definition)
	if err != nil || name != bpfMapAgentState {
		return m, err
	}
	if err := m.Put(uint32(0), &AgentRecord{LayoutVersion: LayoutVersion}); err != nil {
		return nil, errors.Join(fmt.Errorf("write the layout version: %w", err), m.Close())
	}
	return m, nil
}

// fields yields the name of every map and where its handle is kept, agent_state first.
func (s *Set) fields(yield func(name string, handle **ebpf.Map) bool) {
	value := reflect.ValueOf(s).Elem()
	for i := range value.NumField() {
		name, isMap := value.Type().Field(i).Tag.Lookup("ebpf")
		if !isMap {
			continue
		}
		if !yield(name, value.Field(i).Addr().Interface().(**ebpf.Map)) {
			return
		}
	}
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
