package maps

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/cilium/ebpf"
)

// FlowTable is where flows are found by their keys. The established ones are in a map for each family (see
// bpf/flow_table.h), the embryos of both in one.
type FlowTable struct {
	ipv4   *ebpf.Map // by FlowKeyIPv4; nil: they are in others too
	others *ebpf.Map // by FlowKey
}

// FlowTable returns the table of established flows.
func (s *Set) FlowTable() FlowTable { return FlowTable{ipv4: s.FlowsIPv4, others: s.FlowsIPv6} }

// EmbryoTable returns the table of flows that are not established yet.
func (s *Set) EmbryoTable() FlowTable { return FlowTable{others: s.Embryos} }

// Lookup returns the half that a key finds; ebpf.ErrKeyNotExist: none.
func (t FlowTable) Lookup(key FlowKey) (Flow, error) {
	var flow Flow
	if t.packs(key) {
		packed := key.packed()
		return flow, t.ipv4.Lookup(&packed, &flow)
	}
	return flow, t.others.Lookup(&key, &flow)
}

// Put writes a half, whether it is there or not.
func (t FlowTable) Put(key FlowKey, flow Flow) error {
	if t.packs(key) {
		packed := key.packed()
		return t.ipv4.Put(&packed, &flow)
	}
	return t.others.Put(&key, &flow)
}

// Add writes a half where there is none; ebpf.ErrKeyExist: there is one.
func (t FlowTable) Add(key FlowKey, flow Flow) error {
	if t.packs(key) {
		packed := key.packed()
		return t.ipv4.Update(&packed, &flow, ebpf.UpdateNoExist)
	}
	return t.others.Update(&key, &flow, ebpf.UpdateNoExist)
}

// PutAll writes many halves at once.
func (t FlowTable) PutAll(keys []FlowKey, flows []Flow) error {
	var (
		packed       []FlowKeyIPv4
		others       []FlowKey
		ipv4, remain []Flow
	)
	for i, key := range keys {
		if t.packs(key) {
			packed, ipv4 = append(packed, key.packed()), append(ipv4, flows[i])
		} else {
			others, remain = append(others, key), append(remain, flows[i])
		}
	}
	if len(packed) > 0 {
		if _, err := t.ipv4.BatchUpdate(packed, ipv4, nil); err != nil {
			return fmt.Errorf("write %s: %w", t.ipv4, err)
		}
	}
	if len(others) > 0 {
		if _, err := t.others.BatchUpdate(others, remain, nil); err != nil {
			return fmt.Errorf("write %s: %w", t.others, err)
		}
	}
	return nil
}

// Delete takes out a half; ebpf.ErrKeyNotExist: it is not there.
func (t FlowTable) Delete(key FlowKey) error {
	if t.packs(key) {
		packed := key.packed()
		return t.ipv4.Delete(&packed)
	}
	return t.others.Delete(&key)
}

// Each calls visit with every half until it returns false, as the function Each does.
func (t FlowTable) Each(visit func(FlowKey, Flow) bool) error {
	more := true
	visitFlow := func(key FlowKey, flow Flow) bool {
		more = key.isMilestone() || visit(key, flow)
		return more
	}
	if t.ipv4 != nil {
		err := Each(t.ipv4, func(key FlowKeyIPv4, flow Flow) bool { return visitFlow(key.unpacked(), flow) })
		if err != nil || !more {
			return err
		}
	}
	return Each(t.others, visitFlow)
}

// Count returns how many halves there are of each family.
func (t FlowTable) Count() (ipv4, ipv6 int, err error) {
	err = t.Each(func(key FlowKey, _ Flow) bool {
		if key.isIPv4() {
			ipv4++
		} else {
			ipv6++
		}
		return true
	})
	return ipv4, ipv6, err
}

// packs reports whether a key is short in this table.
func (t FlowTable) packs(key FlowKey) bool {
	return t.ipv4 != nil && key.isIPv4()
}

func (k bpfFlowKey) isIPv4() bool { return k.Tuple.Source.Addr().Is4() }

// Seal is flow_seal of bpf/flow_table.h: a flow's record begins with that of its key.
func (k bpfFlowKey) Seal() uint32 {
	packed := k.packed()
	return packed.Source ^ bits.RotateLeft32(packed.Destination, 7) ^ packed.Ports ^ (uint32(k.Edge)<<8 | uint32(k.Protocol))
}

// packed returns the short form of an IPv4 key.
func (k bpfFlowKey) packed() FlowKeyIPv4 {
	return FlowKeyIPv4{
		Source:       binary.NativeEndian.Uint32(k.Tuple.Source.Bytes[12:]),
		Destination:  binary.NativeEndian.Uint32(k.Tuple.Destination.Bytes[12:]),
		Ports:        uint32(k.Tuple.DestinationPort)<<16 | uint32(k.Tuple.SourcePort),
		EdgeProtocol: uint32(k.Edge)<<16 | uint32(k.Protocol),
	}
}

// unpacked returns the form that all flows have in common.
func (k bpfFlowKeyIpv4) unpacked() FlowKey {
	return FlowKey{
		Tuple: Tuple{
			Source:          addressOfIPv4(k.Source),
			Destination:     addressOfIPv4(k.Destination),
			SourcePort:      uint16(k.Ports), // little endian, as the programs are
			DestinationPort: uint16(k.Ports >> 16),
		},
		Edge:     uint16(k.EdgeProtocol >> 16),
		Protocol: uint8(k.EdgeProtocol),
	}
}

// addressOfIPv4 returns the record of an IPv4 address in network order.
func addressOfIPv4(word uint32) Address {
	var ipv4 [4]byte
	binary.NativeEndian.PutUint32(ipv4[:], word)
	return AddressOf(netip.AddrFrom4(ipv4))
}
