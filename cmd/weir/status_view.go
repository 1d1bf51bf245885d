package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/kubeproxy"
	"github.com/weir-lb/weir/controlplane/status"
	"github.com/weir-lb/weir/maps"
)

// statusView is everything that weir status shows. Its JSON is documented in docs/cli.md.
type statusView struct {
	Healthy  bool              `json:"healthy"`
	Reasons  []string          `json:"reasons"` // why not
	Agent    agentView         `json:"agent"`
	Maps     []mapView         `json:"maps"`
	SNAT     *snatView         `json:"snat,omitempty"` // unknown where no agent has said what its ports are
	Counters map[string]uint64 `json:"counters"`

	Quarantined []quarantineView `json:"quarantined,omitempty"` // backends that get no new flows

	SocketCoverage *coverageView `json:"socketCoverage,omitempty"` // absent where there is no socket edge

	KubeProxy *kubeProxyView `json:"kubeProxy,omitempty"` // absent where there is nothing of it
}

// kubeProxyView is what there is of kube-proxy in this network namespace.
type kubeProxyView struct {
	kubeproxy.Rules
	Kept  bool `json:"kept"`        // there is what connections need that it has translated
	Count int  `json:"connections"` // how many go on, since its rules were removed
}

// agentView is what the agent that has the pins, or the last that had them, says of itself.
type agentView struct {
	Running bool `json:"running"`
	*status.Snapshot
}

// mapView is how full a map is.
type mapView struct {
	Name     string `json:"name"`
	Used     int    `json:"used"`
	Capacity int    `json:"capacity"`
	LRU      bool   `json:"lru"` // when full, the oldest entries make room
}

// quarantineView is a backend that clients have found silent.
type quarantineView struct {
	Backend netip.AddrPort `json:"backend"`
	Left    time.Duration  `json:"leftNanoseconds"`
}

// readQuarantined returns the backends in quarantine, in order of their addresses.
func readQuarantined(set *maps.Set) ([]quarantineView, error) {
	found, err := set.Quarantined()
	if err != nil {
		return nil, err
	}
	var views []quarantineView
	for _, q := range found {
		views = append(views, quarantineView{q.Address, q.Left})
	}
	slices.SortFunc(views, func(a, b quarantineView) int { return a.Backend.Compare(b.Backend) })
	return views, nil
}

// snatView is how many flows the node can forward to one backend, at one address and port, at once.
type snatView struct {
	Ports     status.PortRange `json:"ports"`
	Addresses map[string]int   `json:"addresses"`       // of the node, by family
	Flows     map[string]int   `json:"flowsPerBackend"` // by family
}

const (
	// lagLimit is how long a change may wait before the agent counts as unhealthy.
	lagLimit = 2 * time.Second
	// fillLimit is how full a map may be.
	fillLimit = 0.9
)

// readStatus looks at the maps, and at what their agent says of itself.
func readStatus(bpffs string) (statusView, error) {
	set, err := openPinned(bpffs)
	if err != nil {
		return statusView{}, err
	}
	defer set.Close()
	var view statusView
	if view.Agent, err = readAgent(pinsDir(bpffs)); err != nil {
		return view, err
	}
	if view.Maps, err = readFill(set); err != nil {
		return view, err
	}
	if view.Counters, err = set.ReadCounters(); err != nil {
		return view, err
	}
	if view.Quarantined, err = readQuarantined(set); err != nil {
		return view, err
	}
	if view.Agent.Snapshot != nil {
		if view.SNAT, err = readSNAT(set, view.Agent.SNATPorts); err != nil {
			return view, err
		}
	}
	if view.Agent.Snapshot != nil && view.Agent.Sockets.Cgroup != "" {
		view.SocketCoverage = proveCoverage(view.Agent.Sockets.Cgroup)
	}
	if view.KubeProxy, err = readKubeProxy(); err != nil {
		return view, err
	}
	view.Reasons = view.unhealthy(time.Now())
	view.Healthy = len(view.Reasons) == 0
	return view, nil
}

// readKubeProxy looks for what there is of kube-proxy; nil if there is nothing.
func readKubeProxy() (*kubeProxyView, error) {
	var view kubeProxyView
	var err error
	if view.Rules, err = kubeproxy.Find(); err != nil {
		return nil, err
	}
	if view.Count, view.Kept, err = kubeproxy.Kept(); err != nil {
		return nil, err
	}
	if !view.Any() && !view.Kept {
		return nil, nil //nolint:nilnil // absence is an answer
	}
	return &view, nil
}

// readAgent returns what the agent says of itself; no snapshot if none ever did.
func readAgent(pins string) (agentView, error) {
	running, err := status.Running(pins)
	if err != nil {
		return agentView{}, err
	}
	snapshot, err := status.Read(pins)
	if errors.Is(err, fs.ErrNotExist) {
		return agentView{Running: running}, nil
	}
	return agentView{Running: running, Snapshot: &snapshot}, err
}

// unhealthy lists what keeps changes from taking effect, now or soon.
func (v *statusView) unhealthy(now time.Time) []string {
	reasons := []string{}
	add := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	switch {
	case !v.Agent.Running:
		add("no agent is running: what is in the maps goes on, but changes are not followed; start weir agent")
	case v.Agent.Snapshot != nil && v.Agent.SourceFailure != "":
		add("changes are not heard of: %s", v.Agent.SourceFailure)
	case v.Agent.Snapshot == nil || !v.Agent.Sync.Synced:
		add("the agent has not yet brought the maps and the devices up to date once")
	case v.Agent.Sync.Failures > 0:
		add("writing the maps has failed %d times in a row: see the last errors", v.Agent.Sync.Failures)
	case !v.Agent.Sync.Waiting.IsZero() && now.Sub(v.Agent.Sync.Waiting) > lagLimit:
		add("a change has been waiting for %s", now.Sub(v.Agent.Sync.Waiting).Round(time.Millisecond))
	}
	if v.SocketCoverage != nil && v.SocketCoverage.Failed {
		add("sockets are not served: %s", v.SocketCoverage.Reason)
	}
	for _, m := range v.Maps {
		if fill := float64(m.Used) / float64(m.Capacity); fill > fillLimit && !m.LRU {
			add("map %s is %.0f%% full: start the agent with a larger one (weir agent --help, --max-...)", m.Name, 100*fill)
		}
	}
	return reasons
}

// readFill counts what is in the maps that can fill up.
func readFill(set *maps.Set) ([]mapView, error) {
	var views []mapView
	ipv4, ipv6, failed := set.FlowTable().Count()
	add := func(name string, m *ebpf.Map, count func() (int, error)) error {
		used, err := count()
		views = append(views, mapView{
			Name: name, Used: used, Capacity: int(m.MaxEntries()), LRU: m.Type() == ebpf.LRUHash,
		})
		return err
	}
	return views, errors.Join(
		add("frontends", set.Frontends, func() (int, error) { return countKeys[maps.FrontendKey, maps.Frontend](set.Frontends) }),
		add("services", set.Services, func() (int, error) { return countKeys[uint32, maps.ServiceName](set.ServiceNames) }),
		add("slots", set.Slots, func() (int, error) { return countBlocks(set) }),
		add("backends", set.Backends, func() (int, error) { return countBackends(set) }),
		add("flows_ipv4", set.FlowsIPv4, func() (int, error) { return ipv4, failed }),
		add("flows_ipv6", set.FlowsIPv6, func() (int, error) { return ipv6, failed }),
		add("embryos", set.Embryos, func() (int, error) { return countEmbryos(set) }),
		add("socket_flows", set.SocketFlows, func() (int, error) { return countKeys[maps.SocketKey, maps.SocketFlow](set.SocketFlows) }),
		add("devices", set.Devices, func() (int, error) { return countKeys[uint32, maps.DeviceRecord](set.Devices) }),
		add("node_addrs", set.NodeAddrs, func() (int, error) { return countKeys[maps.Address, uint32](set.NodeAddrs) }),
	)
}

// countKeys counts the elements of a hash.
func countKeys[K, V any](m *ebpf.Map) (int, error) {
	count := 0
	err := each(m, func(K, V) { count++ })
	return count, err
}

// countEmbryos counts the halves of flows that are not established.
func countEmbryos(set *maps.Set) (int, error) {
	ipv4, ipv6, err := set.EmbryoTable().Count()
	return ipv4 + ipv6, err
}

// countBackends counts the backends that are in use.
func countBackends(set *maps.Set) (int, error) {
	count := 0
	err := each(set.Backends, func(_ uint32, b maps.Backend) {
		if b.Generation != 0 {
			count++
		}
	})
	return count, err
}

// countBlocks counts the blocks of the arena that service records name.
func countBlocks(set *maps.Set) (int, error) {
	records, err := readAll[uint32, maps.ServiceName](set.ServiceNames)
	if err != nil {
		return 0, err
	}
	blocks := 0
	for index := range records {
		var record maps.Service
		if err := set.Services.Lookup(index, &record); err != nil {
			return 0, fmt.Errorf("read service record %d: %w", index, err)
		}
		blocks += blocksOf(record.Inside) + blocksOf(record.Outside)
	}
	return blocks, nil
}

// blocksOf returns how many blocks a table takes.
func blocksOf(table maps.SlotRange) int {
	perBlock := len(maps.SlotBlock{}.Backend)
	return (int(table.Count) + perBlock - 1) / perBlock
}

// readSNAT counts the addresses that SNAT has, and what they are worth.
func readSNAT(set *maps.Set, ports status.PortRange) (*snatView, error) {
	addresses := map[string]map[maps.Address]bool{"IPv4": {}, "IPv6": {}}
	err := set.EachDevice(func(_ uint32, d maps.Device) bool {
		if d.Edge != maps.EdgeNode {
			return true
		}
		for family, address := range map[string]maps.Address{"IPv4": d.Ipv4, "IPv6": d.Ipv6} {
			if !address.IsZero() {
				addresses[family][address] = true
			}
		}
		return true
	})
	view := &snatView{Ports: ports, Addresses: map[string]int{}, Flows: map[string]int{}}
	for family, distinct := range addresses {
		view.Addresses[family] = len(distinct)
		view.Flows[family] = len(distinct) * ports.Size()
	}
	return view, err
}
