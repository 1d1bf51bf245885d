package lab

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// The readers here look at the pinned maps as a program would, so that what tests wait for does not depend on what
// the agent says of itself.

// pinned opens one of the agent's maps.
func (a *Agent) pinned(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(a.BPFFS, "weir", name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	return m, nil
}

// lookup reads one element of a pinned map.
func (a *Agent) lookup(name string, key, value any) error {
	m, err := a.pinned(name)
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Lookup(key, value)
}

// record reads the service record that a frontend names. A NodePort's frontend has an unspecified address. The error
// is ebpf.ErrKeyNotExist where there is no such frontend.
func (a *Agent) record(frontend netip.AddrPort, protocol compile.Protocol) (maps.Service, error) {
	var (
		found  maps.Frontend
		record maps.Service
	)
	key := maps.FrontendKey{Port: frontend.Port(), Protocol: uint8(protocol)}
	key.Address.Bytes = frontend.Addr().As16()
	if err := a.lookup("frontends", key, &found); err != nil {
		return record, err
	}
	return record, a.lookup("services", found.Index(), &record)
}

// Side is where traffic comes from.
type Side string

// The sides of a node.
const (
	Inside  Side = "inside"
	Outside Side = "outside"
)

// Backends lists where the maps send traffic from inside to a frontend. The error is ebpf.ErrKeyNotExist where there
// is no such frontend.
func (a *Agent) Backends(frontend netip.AddrPort, protocol compile.Protocol) ([]netip.AddrPort, error) {
	return a.BackendsFor(Inside, frontend, protocol)
}

// BackendsFor is Backends for traffic from either side.
func (a *Agent) BackendsFor(side Side, frontend netip.AddrPort, protocol compile.Protocol) ([]netip.AddrPort, error) {
	record, err := a.record(frontend, protocol)
	if err != nil {
		return nil, err
	}
	table := record.Inside
	if side == Outside {
		table = record.Outside
	}
	var backends []netip.AddrPort
	for i := range table.Count {
		backend, err := a.backendAt(table.Base + i)
		if err != nil {
			return nil, err
		}
		backends = append(backends, backend)
	}
	slices.SortFunc(backends, netip.AddrPort.Compare)
	return slices.Compact(backends), nil
}

// WaitBackends waits until the maps send traffic from a side to a frontend of the service to exactly those hosts.
func (a *Agent) WaitBackends(s Service, kind compile.FrontendKind, side Side, hosts ...*Host) error {
	return a.wait(func() error {
		for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
			want := addressesOf(hosts, family)
			for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP} {
				got, err := a.BackendsFor(side, s.key(kind, family), protocol)
				if err != nil {
					return fmt.Errorf("%s %s %s of %s: %w", kind, family, protocol, s.Name, err)
				}
				if !slices.Equal(got, want) {
					return fmt.Errorf("%s %s %s of %s has %s backends %v on %s, want %v", kind, family, protocol, s.Name, side, got, a.Node.Role, want)
				}
			}
		}
		return nil
	})
}

// WaitAffinity waits until the service's ClusterIP has affinity, or has none.
func (a *Agent) WaitAffinity(s Service, want bool) error {
	return a.wait(func() error {
		record, err := a.record(s.key(compile.ClusterIP, compile.IPv4), compile.TCP)
		if err == nil && (record.AffinityTimeout > 0) != want {
			err = fmt.Errorf("the affinity timeout of %s is %d s", s.Name, record.AffinityTimeout)
		}
		return err
	})
}

// backendAt reads the backend that a slot names.
func (a *Agent) backendAt(slot uint32) (netip.AddrPort, error) {
	var (
		block   maps.SlotBlock
		backend maps.Backend
	)
	perBlock := uint32(len(block.Backend))
	if err := a.lookup("slots", slot/perBlock, &block); err != nil {
		return netip.AddrPort{}, err
	}
	if err := a.lookup("backends", block.Backend[slot%perBlock], &backend); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom16(backend.Address.Bytes).Unmap(), backend.Port), nil
}

// WaitServed waits until the maps say exactly what the service asks for, at every frontend, and know its address.
func (a *Agent) WaitServed(s Service) error {
	return a.wait(func() error {
		for _, f := range s.keys() {
			got, err := a.Backends(f.address, f.protocol)
			if err != nil {
				return fmt.Errorf("frontend %s %s of %s: %w", f.address, f.protocol, s.Name, err)
			}
			if want := s.backends(f.family); !slices.Equal(got, want) {
				return fmt.Errorf("frontend %s %s of %s has backends %v, want %v", f.address, f.protocol, s.Name, got, want)
			}
			if err := a.findVIP(f); err != nil {
				return fmt.Errorf("address of frontend %s of %s: %w", f.address, s.Name, err)
			}
		}
		return nil
	})
}

// findVIP looks whether a frontend's address is known as one that clients send to. The agent writes that behind the frontends:
// before, nobody answers a ping. A NodePort has no address of its own.
func (a *Agent) findVIP(f frontendOf) error {
	if f.kind == compile.NodePort {
		return nil
	}
	var flags uint32
	return a.lookup("vips", maps.Address{Bytes: f.address.Addr().As16()}, &flags)
}

// WaitFrontend waits until the maps have a frontend, with at least one backend.
func (a *Agent) WaitFrontend(frontend netip.AddrPort, protocol compile.Protocol) error {
	return a.wait(func() error {
		backends, err := a.Backends(frontend, protocol)
		if err == nil && len(backends) == 0 {
			err = errors.New("no backends")
		}
		if err != nil {
			return fmt.Errorf("frontend %s %s: %w", frontend, protocol, err)
		}
		return nil
	})
}

// WaitGone waits until the maps have no frontend of the service.
func (a *Agent) WaitGone(s Service) error { return a.WaitOnly(s, nil, nil) }

// WaitOnly waits until the service's frontends of those kinds and families are in the maps, and no others.
func (a *Agent) WaitOnly(s Service, kinds []compile.FrontendKind, families []compile.Family) error {
	return a.wait(func() error {
		for _, f := range s.keys() {
			_, err := a.Backends(f.address, f.protocol)
			stays := slices.Contains(kinds, f.kind) && slices.Contains(families, f.family)
			if stays && err != nil {
				return fmt.Errorf("frontend %s %s of %s: %w", f.address, f.protocol, s.Name, err)
			}
			if !stays && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("frontend %s %s of %s is still there (%w)", f.address, f.protocol, s.Name, err)
			}
		}
		return nil
	})
}

// wait polls while the agent runs.
func (a *Agent) wait(f func() error) error {
	var ended error
	err := poll(readyLimit, func() error {
		if ended = a.Running(); ended != nil {
			return nil
		}
		return f()
	})
	return cmp.Or(ended, err)
}

// frontendOf is a frontend as the maps have it.
type frontendOf struct {
	address  netip.AddrPort
	protocol compile.Protocol
	family   compile.Family
	kind     compile.FrontendKind
}

// keys lists every frontend of the service.
func (s Service) keys() []frontendOf {
	var keys []frontendOf
	for _, protocol := range []compile.Protocol{compile.TCP, compile.UDP} {
		for _, kind := range append(slices.Clone(s.Kinds), compile.ClusterIP) {
			keys = append(keys,
				frontendOf{s.key(kind, compile.IPv4), protocol, compile.IPv4, kind},
				frontendOf{s.key(kind, compile.IPv6), protocol, compile.IPv6, kind})
		}
	}
	return keys
}

// key is the address of a frontend as the maps have it: a NodePort's is the unspecified one.
func (s Service) key(kind compile.FrontendKind, family compile.Family) netip.AddrPort {
	if kind != compile.NodePort {
		return netip.AddrPortFrom(s.vip(kind, family), ServicePort)
	}
	if family == compile.IPv6 {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), s.NodePort())
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), s.NodePort())
}

// backends lists the service's endpoints of a family, sorted.
func (s Service) backends(family compile.Family) []netip.AddrPort {
	return addressesOf(append(slices.Clone(s.Pods), s.External...), family)
}

// addressesOf lists where hosts serve, sorted.
func addressesOf(hosts []*Host, family compile.Family) []netip.AddrPort {
	var addresses []netip.AddrPort
	for _, host := range hosts {
		addresses = append(addresses, netip.AddrPortFrom(host.Addr(family), TCPPort))
	}
	slices.SortFunc(addresses, netip.AddrPort.Compare)
	return addresses
}

// Counters returns the programs' packet counters, summed over the CPUs.
func (a *Agent) Counters() (maps.PacketCounters, error) {
	var perCPU []maps.PacketCounters
	if err := a.lookup("counters", uint32(0), &perCPU); err != nil {
		return maps.PacketCounters{}, err
	}
	return sum(perCPU), nil
}

// Traffic returns what the programs have counted of the service behind a frontend.
func (a *Agent) Traffic(frontend netip.AddrPort, protocol compile.Protocol) (maps.Traffic, error) {
	record, err := a.record(frontend, protocol)
	if err != nil {
		return maps.Traffic{}, err
	}
	var perCPU []maps.Traffic
	if err := a.lookup("service_stats", record.Id, &perCPU); err != nil {
		return maps.Traffic{}, err
	}
	return sum(perCPU), nil
}

// sum adds up a struct of counters over the CPUs.
func sum[T any](perCPU []T) T {
	var total T
	fields := reflect.ValueOf(&total).Elem()
	for _, cpu := range perCPU {
		counts := reflect.ValueOf(cpu)
		for i := range fields.NumField() {
			if field := fields.Field(i); field.CanUint() {
				field.SetUint(field.Uint() + counts.Field(i).Uint())
			}
		}
	}
	return total
}
