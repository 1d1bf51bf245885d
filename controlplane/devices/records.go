package devices

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	weirmaps "github.com/weir-lb/weir/maps"
)

// records is what the maps devices and node_addrs hold. Nothing else writes them.
type records struct {
	set       *weirmaps.Set
	devices   map[uint32]weirmaps.Device
	addresses map[netip.Addr]uint32
	writes    int
}

// readRecords reads what a predecessor has left, and the id that it gave to a pod edge last.
func readRecords(set *weirmaps.Set) (*records, uint16, error) {
	r := &records{set: set, devices: map[uint32]weirmaps.Device{}, addresses: map[netip.Addr]uint32{}}
	err := set.EachDevice(func(index uint32, device weirmaps.Device) bool {
		r.devices[index] = device
		return true
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read the map devices: %w", err)
	}
	var address weirmaps.Address
	var index uint32
	entries := set.NodeAddrs.Iterate()
	for entries.Next(&address, &index) {
		r.addresses[address.Addr()] = index
	}
	if err := entries.Err(); err != nil {
		return nil, 0, fmt.Errorf("read the map node_addrs: %w", err)
	}
	var agent weirmaps.AgentRecord
	if err := set.AgentState.Lookup(uint32(0), &agent); err != nil {
		return nil, 0, fmt.Errorf("read the last id of a pod edge: %w", err)
	}
	return r, uint16(agent.LastEdgeId), nil
}

// putDevice makes the map hold a device.
func (r *records) putDevice(index int, device weirmaps.Device) error {
	key := uint32(index)
	if held, known := r.devices[key]; known && held == device {
		return nil
	}
	if err := r.set.PutDevice(key, device); err != nil {
		return fmt.Errorf("write it to the map devices: %w", err)
	}
	r.devices[key] = device
	r.writes++
	return nil
}

// deleteDevice makes the map not hold a device.
func (r *records) deleteDevice(index uint32) error {
	if _, known := r.devices[index]; !known {
		return nil
	}
	if err := r.set.Devices.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete device %d from the map devices: %w", index, err)
	}
	delete(r.devices, index)
	r.writes++
	return nil
}

// setAddresses makes the map hold these addresses and no others.
func (r *records) setAddresses(wanted map[netip.Addr]uint32) (failed error) {
	for addr, index := range wanted {
		if held, known := r.addresses[addr]; known && held == index {
			continue
		}
		if err := r.set.NodeAddrs.Put(weirmaps.AddressOf(addr), index); err != nil {
			failed = errors.Join(failed, fmt.Errorf("write %s to the map node_addrs: %w", addr, err))
			continue
		}
		r.addresses[addr] = index
		r.writes++
	}
	for addr := range r.addresses {
		if _, wanted := wanted[addr]; wanted {
			continue
		}
		if err := r.set.NodeAddrs.Delete(weirmaps.AddressOf(addr)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			failed = errors.Join(failed, fmt.Errorf("delete %s from the map node_addrs: %w", addr, err))
			continue
		}
		delete(r.addresses, addr)
		r.writes++
	}
	return failed
}

// sources returns the addresses that stand for the node on the node edge, sorted.
func (r *records) sources() []netip.Addr {
	var all []netip.Addr
	for _, device := range r.devices {
		if device.Edge != weirmaps.EdgeNode {
			continue
		}
		for _, address := range []weirmaps.Address{device.Ipv4, device.Ipv6} {
			if !address.IsZero() {
				all = append(all, address.Addr())
			}
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// keepEdgeID notes the id that was given to a pod edge last, for a successor.
func (r *records) keepEdgeID(last uint16) error {
	var agent weirmaps.AgentRecord
	if err := r.set.AgentState.Lookup(uint32(0), &agent); err != nil {
		return fmt.Errorf("read the last id of a pod edge: %w", err)
	}
	if agent.LastEdgeId == uint32(last) {
		return nil
	}
	agent.LastEdgeId = uint32(last)
	if err := r.set.AgentState.Put(uint32(0), &agent); err != nil {
		return fmt.Errorf("note the last id of a pod edge: %w", err)
	}
	return nil
}
