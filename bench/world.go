package bench

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

// The source ports that SNAT hands out: the default.
const (
	snatPortMin = 61000
	snatPortMax = 65535
)

// podEdge is the edge id of the pod's device.
const podEdge = 1

// world is everything the programs look at: maps of their own, Services in them, and devices.
type world struct {
	network  *network
	set      *maps.Set
	programs *loader.Programs
	floors   *ebpf.Collection
	empty    map[hook]*ebpf.Program
	backends int // of each service
}

// newWorld builds the world in a network namespace that it moves the calling thread into; see newNetwork.
// Nothing is pinned or has a name: it ends with the process, however that ends. Maps have room for so many flows.
func newWorld(flows uint32) (*world, error) {
	network, err := newNetwork()
	if err != nil {
		return nil, err
	}
	w := &world{network: network, empty: map[hook]*ebpf.Program{}, backends: backendsFor(flows)}
	if err := w.fill(flows); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// backendsFor returns how many backends a service needs for so many flows: each has but some 4500 source ports.
func backendsFor(flows uint32) int {
	const few, flowsPerBackend = 64, 1024
	return max(few, int(flows/flowsPerBackend))
}

func (w *world) fill(flows uint32) error {
	sizes := maps.DefaultSizes()
	sizes.FlowsIPv4 = max(sizes.FlowsIPv4, 4*flows) // two halves each, and as many buckets to spare
	sizes.FlowsIPv6 = sizes.FlowsIPv4
	var err error
	if w.set, err = maps.New(sizes); err != nil {
		return err
	}
	features, err := loader.Probe()
	if err != nil {
		return err
	}
	w.programs, err = loader.Load(w.set, loader.Constants{
		SNATPortMin:      snatPortMin,
		SNATPortMax:      snatPortMax,
		JiffiesPerSecond: features.JiffiesPerSecond,
		XDPFrags:         features.XDPFrags,
		CsumIPv6Flag:     features.CsumIPv6Flag,
	})
	if err != nil {
		return err
	}
	for _, at := range []hook{xdp, tc} {
		if w.empty[at], err = loadEmpty(at); err != nil {
			return err
		}
	}
	// As many buckets as the flow tables have.
	if w.floors, err = loadFloors(sizes.FlowsIPv4); err != nil {
		return err
	}
	if err := w.fillDevices(); err != nil {
		return fmt.Errorf("describe the devices: %w", err)
	}
	return w.fillServices()
}

// fillDevices does what the agent does for the node's links.
func (w *world) fillDevices() error {
	v4, v6 := addressesOf(compile.IPv4), addressesOf(compile.IPv6)
	uplink, pod := w.network.uplink.Attrs(), w.network.pod.Attrs()
	device := maps.Device{
		Edge: maps.EdgeNode, Ipv4: maps.AddressOf(v4.node.Addr()), Ipv6: maps.AddressOf(v6.node.Addr()),
	}
	copy(device.Mac[:], uplink.HardwareAddr)
	if err := w.set.PutDevice(uint32(uplink.Index), device); err != nil {
		return err
	}
	device.Edge, device.EdgeId = maps.EdgePod, podEdge
	copy(device.Mac[:], pod.HardwareAddr)
	if err := w.set.PutDevice(uint32(pod.Index), device); err != nil {
		return err
	}
	if err := w.set.XDPDevices.Put(uint32(uplink.Index), uint32(uplink.Index)); err != nil {
		return err
	}
	for _, a := range []addresses{v4, v6} {
		if err := w.set.NodeAddrs.Put(maps.AddressOf(a.node.Addr()), uint32(1)); err != nil {
			return err
		}
	}
	return nil
}

// service is a Service port that packets are sent to, once for each kind of packet.
type service struct {
	name  string
	port  uint16
	edge  string // of its clients
	local bool   // its backends are on this node
	fresh bool   // each packet opens a flow, else all flows are known
}

// services are those that packets are sent to. New flows have services of their own, so as not to take the known
// ones' source ports.
func services() []service {
	return []service{
		{name: "hit-local", port: 80, edge: edgeNode, local: true},
		{name: "hit-remote", port: 81, edge: edgeNode},
		{name: "hit-pod", port: 82, edge: edgePod},
		{name: "new-local", port: 83, edge: edgeNode, local: true, fresh: true},
		{name: "new-remote", port: 84, edge: edgeNode, fresh: true},
		{name: "new-pod", port: 85, edge: edgePod, fresh: true},
	}
}

// frontend returns where clients send to.
func (s service) frontend(family compile.Family) netip.AddrPort {
	return netip.AddrPortFrom(addressesOf(family).vip, s.port)
}

// backendPort is the port of all backends.
func (s service) backendPort() uint16 { return 8000 + s.port }

// compiled returns what a Service with so many endpoints becomes.
func (s service) compiled(k kind, count int) compile.Service {
	var backends []compile.Backend
	address := addressesOf(k.Family).backends
	for range count {
		backends = append(backends, compile.Backend{
			Address: netip.AddrPortFrom(address, s.backendPort()), Local: s.local,
		})
		address = address.Next()
	}
	return compile.Service{
		ID:               compile.ID{Namespace: "bench", Name: s.name, Protocol: k.Protocol, Family: k.Family},
		Frontends:        []compile.Frontend{{Kind: compile.LoadBalancer, Address: s.frontend(k.Family)}},
		Inside:           backends,
		Outside:          backends,
		InsideAlgorithm:  maps.AlgorithmRandom,
		OutsideAlgorithm: maps.AlgorithmMaglev,
	}
}

// fillServices writes the services of every kind as the agent does.
func (w *world) fillServices() error {
	var all []compile.Service
	for _, k := range kinds() {
		for _, s := range services() {
			all = append(all, s.compiled(k, w.backends))
		}
	}
	applier, err := apply.New(w.set, zap.NewNop())
	if err != nil {
		return err
	}
	if err := applier.Sync(all); err != nil {
		return fmt.Errorf("write the services: %w", err)
	}
	if problems := applier.Problems(); len(problems) > 0 {
		return fmt.Errorf("write the services: %s", problems[0].Message)
	}
	return nil
}

// isBackend tells whether an address is that of a backend: they follow each other.
func (w *world) isBackend(family compile.Family, address netip.Addr) bool {
	backend := addressesOf(family).backends
	for range w.backends {
		if backend == address {
			return true
		}
		backend = backend.Next()
	}
	return false
}

// id returns the id under which the service's traffic is counted.
func (w *world) id(s service, k kind) (uint32, error) {
	key := maps.FrontendKeyOf(s.frontend(k.Family), uint8(k.Protocol))
	var frontend maps.Frontend
	if err := w.set.Frontends.Lookup(key, &frontend); err != nil {
		return 0, fmt.Errorf("find service %s: %w", s.name, err)
	}
	var record maps.Service
	if err := w.set.Services.Lookup(frontend.Index(), &record); err != nil {
		return 0, fmt.Errorf("read service %s: %w", s.name, err)
	}
	return record.Id, nil
}

// traffic returns what has been counted of a service, over all CPUs.
func (w *world) traffic(id uint32) (maps.Traffic, error) {
	var perCPU []maps.Traffic
	if err := w.set.ServiceStats.Lookup(id, &perCPU); err != nil {
		return maps.Traffic{}, fmt.Errorf("read the traffic of service %d: %w", id, err)
	}
	var all maps.Traffic
	for _, one := range perCPU {
		all.Flows += one.Flows
		all.Packets += one.Packets
	}
	return all, nil
}

// close frees everything but the network namespace, which goes with the thread.
func (w *world) close() error {
	failed := w.network.close()
	for _, program := range w.empty {
		failed = errors.Join(failed, program.Close())
	}
	if w.floors != nil {
		w.floors.Close()
	}
	if w.programs != nil {
		failed = errors.Join(failed, w.programs.Close())
	}
	if w.set != nil {
		failed = errors.Join(failed, w.set.Close())
	}
	return failed
}
