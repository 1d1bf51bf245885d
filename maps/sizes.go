package maps

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Sizes are the capacities of the maps that grow with the cluster and its traffic, in entries. 0 is the
// size that the map is declared with.
type Sizes struct {
	Services   uint32 // Service ports of one family; there are twice as many records of them
	Frontends  uint32
	Backends   uint32
	SlotBlocks uint32 // of 16 slots each
	Sources    uint32 // prefixes of loadBalancerSourceRanges, each for one Service port
	FlowsIPv4  uint32 // halves: two for each connection
	FlowsIPv6  uint32 // halves
	Embryos    uint32 // halves, of both families
	Affinity   uint32 // clients, each of one service
	Devices    uint32
}

// DefaultSizes fit a node of a cluster with 10,000 Services of 10 endpoints each. The slots are 64 MiB, the
// flow maps 156 MiB, and the counters 8 MiB for each CPU.
func DefaultSizes() Sizes {
	return Sizes{
		Services:   65536,
		Frontends:  131072,
		Backends:   131072,
		SlotBlocks: 1 << 20,
		Sources:    65536,
		FlowsIPv4:  524288,
		FlowsIPv6:  262144,
		Embryos:    131072,
		Affinity:   131072,
		Devices:    16384,
	}
}

// sizeOf is a map whose capacity follows from a size.
type sizeOf struct {
	name   string
	m      *ebpf.Map // of the set at hand; nil: there is none
	size   *uint32
	factor uint32
}

// of ties the sizes to the maps of a set. A changed service needs a second record until the old one is out of
// use, hence twice as many records as services.
func (s *Sizes) of(set *Set) []sizeOf {
	return []sizeOf{
		{bpfMapFrontends, set.Frontends, &s.Frontends, 1},
		{bpfMapVips, set.VIPs, &s.Frontends, 1},
		{bpfMapServices, set.Services, &s.Services, 2},
		{bpfMapServiceNames, set.ServiceNames, &s.Services, 2},
		{bpfMapClusterIps, set.ClusterIPs, &s.Services, 2},
		{bpfMapServiceStats, set.ServiceStats, &s.Services, 1},
		{bpfMapServiceUsage, set.ServiceUsage, &s.Services, 1},
		{bpfMapBackends, set.Backends, &s.Backends, 1},
		{bpfMapBackendLoads, set.BackendLoads, &s.Backends, 1},
		{bpfMapBackendHealth, set.BackendHealth, &s.Backends, 1},
		{bpfMapBackendStats, set.BackendStats, &s.Backends, 1},
		{bpfMapBackendUsage, set.BackendUsage, &s.Backends, 1},
		{bpfMapSlots, set.Slots, &s.SlotBlocks, 1},
		{bpfMapSources, set.Sources, &s.Sources, 1},
		{bpfMapFlowsIpv4, set.FlowsIPv4, &s.FlowsIPv4, 1},
		{bpfMapFlowsIpv6, set.FlowsIPv6, &s.FlowsIPv6, 1},
		{bpfMapEmbryos, set.Embryos, &s.Embryos, 1},
		{bpfMapAffinity, set.Affinity, &s.Affinity, 1},
		{bpfMapDevices, set.Devices, &s.Devices, 1},
	}
}

// keeping returns the sizes with those of the maps that are there instead of those asked for.
func (s Sizes) keeping(set *Set) Sizes {
	for _, kept := range s.of(set) {
		if kept.m != nil {
			*kept.size = kept.m.MaxEntries() / kept.factor
		}
	}
	return s
}

// Sizes returns the sizes that the maps have.
func (s *Set) Sizes() Sizes { return Sizes{}.keeping(s) }

// specs returns the map definitions with the sizes applied.
func specs(s Sizes) (map[string]*ebpf.MapSpec, error) {
	if 2*uint64(s.Services) > frontendIndexMask {
		return nil, fmt.Errorf("room for %d services: at most %d can be told apart", s.Services, frontendIndexMask/2)
	}
	collection, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read the map definitions: %w", err)
	}
	for _, sized := range s.of(&Set{}) {
		if *sized.size > 0 {
			collection.Maps[sized.name].MaxEntries = *sized.size * sized.factor
		}
	}
	return collection.Maps, nil
}
