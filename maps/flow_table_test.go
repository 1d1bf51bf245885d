package maps

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// A flow is found by its key in the map of its family, and by no other key.
func TestFlowTable(t *testing.T) {
	set, err := New(tinySizes())
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	keys := []FlowKey{
		flowKey("192.0.2.1:1000", "203.0.113.1:80", 6, 0),
		flowKey("192.0.2.1:1000", "203.0.113.1:80", 17, 0),
		flowKey("192.0.2.1:1000", "203.0.113.1:80", 6, 3),
		flowKey("203.0.113.1:80", "192.0.2.1:1000", 6, 0),
		flowKey("[2001:db8::1]:1000", "[2001:db8::2]:80", 6, 0),
		flowKey("[2001:db8::1]:1000", "[2001:db8::2]:80", 6, 3),
	}
	table := set.FlowTable()
	flows := make([]Flow, len(keys))
	for i := range flows {
		flows[i].Service = uint32(i)
	}
	if err := table.PutAll(keys[:5], flows[:5]); err != nil {
		t.Fatal(err)
	}
	if err := table.Put(keys[5], flows[5]); err != nil {
		t.Fatal(err)
	}
	for i, key := range keys {
		if got, err := table.Lookup(key); err != nil || got != flows[i] {
			t.Errorf("%+v finds %+v (%v), not flow %d", key, got, err, i)
		}
	}
	wantHalves(t, set.FlowsIPv4, 4)
	wantHalves(t, set.FlowsIPv6, 2)
	if ipv4, ipv6, err := table.Count(); err != nil || ipv4 != 4 || ipv6 != 2 {
		t.Errorf("%d and %d halves are counted (%v), not 4 and 2", ipv4, ipv6, err)
	}
	visited := 0
	err = table.Each(func(key FlowKey, flow Flow) bool {
		visited++
		if keys[flow.Service] != key {
			t.Errorf("flow %d has the key %+v", flow.Service, key)
		}
		return visited < 5
	})
	if err != nil || visited != 5 {
		t.Errorf("%d flows were visited (%v), not 5", visited, err)
	}
	for _, key := range keys {
		if err := table.Delete(key); err != nil {
			t.Error(err)
		}
		if _, err := table.Lookup(key); !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Errorf("%+v is there (%v) after its deletion", key, err)
		}
	}
}

func flowKey(from, to string, protocol uint8, edge uint16) FlowKey {
	tuple := TupleOf(netip.MustParseAddrPort(from), netip.MustParseAddrPort(to))
	return FlowKey{Tuple: tuple, Protocol: protocol, Edge: edge}
}

func wantHalves(t *testing.T, m *ebpf.Map, want int) {
	t.Helper()
	got := 0
	key := make([]byte, m.KeySize())
	for all := m.Iterate(); all.Next(&key, new(Flow)); {
		got++
	}
	if got != want {
		t.Errorf("%s has %d halves, not %d", m, got, want)
	}
}
