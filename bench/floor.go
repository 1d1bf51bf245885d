package bench

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
)

// What the floors return: PARSED and HIT of floor.bpf.c.
const (
	floorParsed = 3
	floorHit    = 1
)

// floorBackendPort is the port of the floor's only backend.
const floorBackendPort = 8000

// floorFrontend is where the packets go that the floors are measured with.
func floorFrontend(family compile.Family) netip.AddrPort {
	const port = 80
	return netip.AddrPortFrom(addressesOf(family).vip, port)
}

// loadFloors loads the floors, with tables of so many entries.
func loadFloors(entries uint32) (*ebpf.Collection, error) {
	spec, err := readObject(loadFloor)
	if err != nil {
		return nil, fmt.Errorf("read the floors: %w", err)
	}
	for _, definition := range spec.Maps {
		definition.MaxEntries = entries
	}
	floors, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the floors: %w", err)
	}
	return floors, nil
}

// fillFloor puts flows 0 to count-1 of the packets into the floors' table. What is there already stays.
func fillFloor(floors *ebpf.Collection, p packets, count uint32) error {
	table := floors.Maps["flows4"]
	if p.Family == compile.IPv6 {
		table = floors.Maps["flows6"]
	}
	backend := addressesOf(p.Family).backends
	for flow := range count {
		// value4 or value6 of floor.bpf.c
		value := binary.BigEndian.AppendUint16(backend.AsSlice(), floorBackendPort)
		value = append(value, 0, 0)
		if err := table.Put(floorKey(p, flow), value); err != nil {
			return fmt.Errorf("fill the floors' table: %w", err)
		}
	}
	return nil
}

// floorKey is key4 or key6 of floor.bpf.c: addresses and ports as on the wire, the protocol as a 32-bit number.
func floorKey(p packets, flow uint32) []byte {
	source := p.source(flow)
	key := append(source.Addr().AsSlice(), p.destination.Addr().AsSlice()...)
	key = binary.BigEndian.AppendUint16(key, source.Port())
	key = binary.BigEndian.AppendUint16(key, p.destination.Port())
	return binary.NativeEndian.AppendUint32(key, uint32(p.Protocol))
}
