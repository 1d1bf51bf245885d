package packet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/controlplane/clusterips"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/detectlocal"
	"github.com/weir-lb/weir/controlplane/vips"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

// World is a node with loaded programs, and maps as the agent would write them.
type World struct {
	*Node
	Runner
	Maps     *maps.Set
	Programs *loader.Programs

	own     []*ebpf.Map // maps that each program object has for itself
	applier *vips.Follower
	reserve *clusterips.Writer
}

// Settings are what a world is made with.
type Settings struct {
	Sizes     maps.Sizes
	Constants loader.Constants
}

// DefaultSettings fit the tests: small tables, the default SNAT range, and seconds so long that nothing of a
// test depends on how long it takes.
func DefaultSettings() Settings {
	return Settings{
		Sizes: maps.Sizes{
			Services: 8, Frontends: 64, Backends: 16, SlotBlocks: 256, FlowsIPv4: 4096, FlowsIPv6: 4096, Embryos: 4096, Affinity: 1024, Devices: 64,
		},
		Constants: loader.Constants{
			SNATPortMin: 61000, SNATPortMax: 65535, JiffiesPerSecond: 1 << 25, CsumIPv6Flag: true, XDPFrags: true, Quarantine: 10,
		},
	}
}

// LargeSettings fit RandomServices and rounds of random packets.
func LargeSettings() Settings {
	settings := DefaultSettings()
	settings.Constants.InsideBySource = true
	settings.Constants.Quarantine = 0 // the model knows none
	settings.Sizes = maps.Sizes{
		Services: 128, Frontends: 512, Backends: 512, SlotBlocks: 4096, FlowsIPv4: 32768, FlowsIPv6: 32768, Embryos: 32768, Affinity: 65536, Devices: 64,
	}
	return settings
}

// NewWorld loads the programs and writes what the agent writes about devices and addresses.
func NewWorld(node *Node, settings Settings) (*World, error) {
	set, err := maps.New(settings.Sizes)
	if err != nil {
		return nil, err
	}
	w := &World{Node: node, Maps: set}
	if w.Programs, err = loader.Load(set, settings.Constants); err != nil {
		return nil, errors.Join(err, set.Close())
	}
	w.Runner.programs = w.Programs
	if err := w.openOwn(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := w.Reset(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Close closes programs and maps; the node stays.
func (w *World) Close() error {
	failed := errors.Join(w.Programs.Close(), w.Maps.Close())
	for _, m := range w.own {
		failed = errors.Join(failed, m.Close())
	}
	return failed
}

// openOwn opens the maps that are not of the set: what program objects have for themselves.
func (w *World) openOwn() error {
	known := make(map[ebpf.MapID]bool)
	for name, m := range w.Maps.Replacements() {
		id, err := mapID(m)
		if err != nil {
			return fmt.Errorf("read about map %s: %w", name, err)
		}
		known[id] = true
	}
	for name, program := range w.Programs.ByName() {
		info, err := program.Info()
		if err != nil {
			return fmt.Errorf("read about program %s: %w", name, err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			if known[id] {
				continue
			}
			known[id] = true
			if err := w.open(id); err != nil {
				return fmt.Errorf("open map %d: %w", id, err)
			}
		}
	}
	return nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID()
	return id, nil
}

// open takes a map that can be written: constants cannot.
func (w *World) open(id ebpf.MapID) error {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return err
	}
	if m.Type() != ebpf.PerCPUArray {
		return m.Close()
	}
	w.own = append(w.own, m)
	return nil
}

// Reset empties every map and writes the devices anew.
func (w *World) Reset() error {
	for name, m := range w.Maps.Replacements() {
		if m == w.Maps.Slots {
			continue // what no record names may hold anything
		}
		if err := empty(m); err != nil {
			return fmt.Errorf("empty map %s: %w", name, err)
		}
	}
	if err := w.forgetScratch(); err != nil {
		return err
	}
	if err := w.writeDevices(); err != nil {
		return err
	}
	if err := w.KnowConnections(true); err != nil {
		return err
	}
	applier, err := apply.New(w.Maps, zap.NewNop(), apply.Tunnels(func() bool { return true }))
	w.applier, w.reserve = vips.Follow(applier, w.Maps, true), clusterips.NewWriter(w.Maps)
	return err
}

// forgetScratch empties what programs work on, with what they remember there of ICMP errors sent.
func (w *World) forgetScratch() error {
	return w.emptyOwn("scratches")
}

// ForgetDevices empties what programs remember of devices, which they believe for a while.
func (w *World) ForgetDevices() error {
	return w.emptyOwn("device_caches")
}

func (w *World) emptyOwn(name string) error {
	for _, m := range w.own {
		info, err := m.Info()
		if err != nil {
			return fmt.Errorf("read about a program's own map: %w", err)
		}
		if info.Name != name {
			continue
		}
		if err := empty(m); err != nil {
			return fmt.Errorf("empty %s: %w", name, err)
		}
	}
	return nil
}

// Forget takes out the flows of a model that is right about them, and the counters; the services stay. It is
// quicker than Reset.
func (w *World) Forget(m *Model) error {
	for table, halves := range map[maps.FlowTable]map[flowID]*half{w.Maps.FlowTable(): m.flows, w.Maps.EmbryoTable(): m.embryos} {
		for id := range halves {
			if err := remove(table, halves, id); err != nil {
				return err
			}
		}
	}
	counting := []*ebpf.Map{w.Maps.Counters}
	if len(m.traffic) > 0 {
		counting = append(counting, w.Maps.ServiceStats)
	}
	for _, counters := range counting {
		if err := empty(counters); err != nil {
			return fmt.Errorf("empty the counters: %w", err)
		}
	}
	if len(m.affinity) > 0 {
		if err := empty(w.Maps.Affinity); err != nil {
			return fmt.Errorf("empty the clients' backends: %w", err)
		}
	}
	if len(m.datagrams) > 0 {
		for _, of := range []*ebpf.Map{w.Maps.Fragments, w.Maps.HeldFragments} {
			if err := empty(of); err != nil {
				return fmt.Errorf("empty the fragments: %w", err)
			}
		}
	}
	sent := len(m.messages)+len(m.echoes) > 0
	m.Forget()
	if sent {
		return w.forgetScratch()
	}
	return nil
}

func (w *World) writeDevices() error {
	for name, device := range w.devices {
		if err := w.Maps.PutDevice(uint32(device.Index), device.Record); err != nil {
			return fmt.Errorf("write device %s: %w", name, err)
		}
		if device.XDP {
			if err := w.Maps.XDPDevices.Put(uint32(device.Index), uint32(device.Index)); err != nil {
				return fmt.Errorf("write XDP device %s: %w", name, err)
			}
		}
		if !device.Addresses.IPv4.IsValid() {
			continue
		}
		for _, address := range []maps.Address{device.Record.Ipv4, device.Record.Ipv6} {
			if err := w.Maps.NodeAddrs.Put(&address, uint32(1)); err != nil {
				return fmt.Errorf("write address of %s: %w", name, err)
			}
		}
	}
	return nil
}

// Serve makes these services, and no others, the ones of the world.
func (w *World) Serve(services ...compile.Service) error {
	if err := w.applier.Sync(services); err != nil {
		return err
	}
	for _, problem := range w.applier.Problems() {
		return fmt.Errorf("%s: %s", problem.Object, problem.Message)
	}
	return nil
}

// Reserve says what becomes of packets that no frontend is for.
func (w *World) Reserve(reserved Reserved) error { return w.reserve.Sync(reserved) }

// SetInside says whose packets count as inside at the node edge.
func (w *World) SetInside(prefixes ...netip.Prefix) error {
	return detectlocal.Write(w.Maps, prefixes)
}

// TakeTunnels says where tunnels of other nodes may come from.
func (w *World) TakeTunnels(from ...netip.Addr) error {
	wanted := map[maps.Address]struct{}{}
	for _, address := range from {
		wanted[maps.AddressOf(address)] = struct{}{}
	}
	return maps.Hold(w.Maps.TunnelSources, wanted)
}

// Exempt says which clients no tunnel is for.
func (w *World) Exempt(clients ...netip.Prefix) error {
	wanted := map[maps.PrefixKey]struct{}{}
	for _, prefix := range clients {
		wanted[maps.PrefixKeyOf(prefix)] = struct{}{}
	}
	return maps.Hold(w.Maps.TunnelExempt, wanted)
}

// KnowConnections says whether foreign flows from before are recorded, as after the agent's start.
func (w *World) KnowConnections(known bool) error {
	settings := maps.LiveSettings{}
	if known {
		settings.ConnectionsKnown = 1
	}
	return w.Maps.LiveConfig.Put(uint32(0), &settings)
}

// empty removes or zeroes every element.
func empty(m *ebpf.Map) error {
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.DevMapHash, ebpf.LPMTrie:
		return emptyHash(m)
	case ebpf.PerCPUArray:
		zeros := make([][]byte, ebpf.MustPossibleCPU())
		for cpu := range zeros {
			zeros[cpu] = make([]byte, m.ValueSize())
		}
		return fillArray(m, zeros)
	default:
		return fillArray(m, make([]byte, m.ValueSize()))
	}
}

func emptyHash(m *ebpf.Map) error {
	var keys [][]byte
	var previous any
	for {
		key := make([]byte, m.KeySize())
		err := m.NextKey(previous, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
		if err != nil {
			return err
		}
		keys, previous = append(keys, key), key
	}
	for _, key := range keys {
		if err := m.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

func fillArray(m *ebpf.Map, value any) error {
	for index := range m.MaxEntries() {
		if err := m.Put(index, value); err != nil {
			return err
		}
	}
	return nil
}
