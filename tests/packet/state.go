package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Counters returns the counters, all CPUs added.
func (w *World) Counters() (maps.PacketCounters, error) {
	var perCPU []maps.PacketCounters
	if err := w.Maps.Counters.Lookup(uint32(0), &perCPU); err != nil {
		return maps.PacketCounters{}, fmt.Errorf("read the counters: %w", err)
	}
	return addUp(perCPU)
}

// addUp adds records of which every field is a u64.
func addUp[T any](perCPU []T) (total T, err error) {
	size := binary.Size(total)
	sums := make([]byte, size)
	for _, values := range perCPU {
		raw, err := binary.Append(nil, binary.NativeEndian, values)
		if err != nil {
			return total, err
		}
		for i := 0; i < size; i += 8 {
			sum := binary.NativeEndian.Uint64(sums[i:]) + binary.NativeEndian.Uint64(raw[i:])
			binary.NativeEndian.PutUint64(sums[i:], sum)
		}
	}
	return total, binary.Read(bytes.NewReader(sums), binary.NativeEndian, &total)
}

// names returns the ID of every service by the number that flows name it by.
func (w *World) names() (map[uint32]compile.ID, error) {
	names := make(map[uint32]compile.ID)
	var index uint32
	var record maps.ServiceName
	entries := w.Maps.ServiceNames.Iterate()
	for entries.Next(&index, &record) {
		name, _, _ := bytes.Cut(record.Name[:], []byte{0})
		id, err := compile.ParseID(string(name))
		if err != nil {
			return nil, err
		}
		names[record.Id] = id
	}
	return names, entries.Err()
}

// Traffic returns the counters of every service that has some.
func (w *World) Traffic() (map[compile.ID]maps.Traffic, error) {
	names, err := w.names()
	if err != nil {
		return nil, fmt.Errorf("read the names of services: %w", err)
	}
	all := make(map[compile.ID]maps.Traffic)
	for number, id := range names {
		var perCPU []maps.Traffic
		if err := w.Maps.ServiceStats.Lookup(number, &perCPU); err != nil {
			return nil, fmt.Errorf("read the counters of %s: %w", id, err)
		}
		traffic, err := addUp(perCPU)
		if err != nil {
			return nil, err
		}
		if traffic != (maps.Traffic{}) {
			all[id] = traffic
		}
	}
	return all, nil
}

// halves reads a flow table.
func (w *World) halves(table maps.FlowTable) (map[flowID]half, error) {
	names, err := w.names()
	if err != nil {
		return nil, fmt.Errorf("read the names of services: %w", err)
	}
	halves := make(map[flowID]half)
	var bad error
	err = table.Each(func(key maps.FlowKey, flow maps.Flow) bool {
		id := flowID{tuple{key.Tuple.SourceAddrPort(), key.Tuple.DestinationAddrPort()}, key.Edge, key.Protocol}
		h := half{action: flow.Action, half: flow.Half, state: flow.State, retry: flow.Retry != 0}
		if flow.Action&^maps.FlowEnded != maps.FlowForeign {
			if err := w.fill(&h, flow, names); err != nil {
				bad = fmt.Errorf("flow %v: %w", id, err)
			}
		}
		halves[id] = h
		return bad == nil
	})
	return halves, errors.Join(err, bad)
}

// fill fills in what foreign flows do not have.
func (w *World) fill(h *half, flow maps.Flow, names map[uint32]compile.ID) error {
	var backend maps.Backend
	if err := w.Maps.Backends.Lookup(flow.Backend, &backend); err != nil {
		return fmt.Errorf("read backend %d: %w", flow.Backend, err)
	}
	if backend.Generation != flow.Generation {
		return fmt.Errorf("backend %d is of generation %d, not %d", flow.Backend, backend.Generation, flow.Generation)
	}
	id, ok := names[flow.Service]
	if !ok {
		return fmt.Errorf("there is no service %d", flow.Service)
	}
	h.to = tuple{flow.To.SourceAddrPort(), flow.To.DestinationAddrPort()}
	h.service, h.ifindex = id, int(flow.Ifindex)
	h.backend = netip.AddrPortFrom(backend.Address.Addr(), backend.Port)
	return nil
}

// CheckState compares counters and flow tables with the model's.
func (m *Model) CheckState(w *World) error {
	return errors.Join(m.checkCounters(w), m.checkTraffic(w), checkTable("flows", w, w.Maps.FlowTable(), m.flows),
		checkTable("embryos", w, w.Maps.EmbryoTable(), m.embryos))
}

func (m *Model) checkCounters(w *World) error {
	counters, err := w.Counters()
	if err == nil && counters != m.counters {
		err = fmt.Errorf("counters (-want +got):\n%s", cmp.Diff(m.counters, counters))
	}
	return err
}

func (m *Model) checkTraffic(w *World) error {
	traffic, err := w.Traffic()
	if err != nil {
		return err
	}
	want := make(map[compile.ID]maps.Traffic)
	for id, t := range m.traffic {
		want[id] = *t
	}
	if diff := cmp.Diff(want, traffic); diff != "" {
		return fmt.Errorf("traffic of services (-want +got):\n%s", diff)
	}
	return nil
}

func checkTable(name string, w *World, table maps.FlowTable, want map[flowID]*half) error {
	got, err := w.halves(table)
	if err != nil {
		return fmt.Errorf("read map %s: %w", name, err)
	}
	for id, h := range want {
		if found, ok := got[id]; !ok || found != *h {
			return fmt.Errorf("map %s has %+v for %+v, not %+v", name, found, id, *h)
		}
		delete(got, id)
	}
	for id, h := range got {
		return fmt.Errorf("map %s has %+v for %+v, which it shall not", name, h, id)
	}
	return nil
}

func flowKeyOf(id flowID) maps.FlowKey {
	return maps.FlowKey{Tuple: maps.TupleOf(id.tuple.from, id.tuple.to), Edge: id.edge, Protocol: id.protocol}
}

// remove takes a half out of a flow table, and of the model's.
func remove(table maps.FlowTable, model map[flowID]*half, id flowID) error {
	if err := table.Delete(flowKeyOf(id)); err != nil {
		return fmt.Errorf("delete the half of %+v: %w", id, err)
	}
	delete(model, id)
	return nil
}

// Evict takes one half of an embryo out, as an LRU does, if the one it happens upon still is.
func (m *Model) Evict(w *World, g *Generator) error {
	id, ok := m.someHalf(g)
	if !ok || m.embryos[id] == nil {
		return nil
	}
	return remove(w.Maps.EmbryoTable(), m.embryos, id)
}

// Sweep takes both halves of an established flow out, if the one it happens upon is one.
func (m *Model) Sweep(w *World, g *Generator) error {
	id, ok := m.someHalf(g)
	h := m.flows[id]
	if !ok || h == nil {
		return nil
	}
	halves := []flowID{id}
	if h.action&^maps.FlowEnded != maps.FlowForeign && m.flows[id.other(h.to)] != nil {
		halves = append(halves, id.other(h.to))
	}
	for _, half := range halves {
		if err := remove(w.Maps.FlowTable(), m.flows, half); err != nil {
			return err
		}
	}
	return nil
}

// End does to an established TCP flow what a sweep does when its backend has left a Service that wants connections reset, if
// the half it happens upon is of one.
func (m *Model) End(w *World, g *Generator) error {
	id, ok := m.someHalf(g)
	if !ok {
		return nil
	}
	return m.end(w, id)
}

func (m *Model) end(w *World, id flowID) error {
	h := m.flows[id]
	if h == nil || h.action == maps.FlowForeign && id.edge != maps.EdgeIDForeign || id.protocol == protocolUDP {
		return nil
	}
	for _, id := range []flowID{id, id.other(h.to)} { // of a foreign flow there is no other
		h := m.flows[id]
		if h == nil {
			continue
		}
		h.state = maps.FlowClosed
		if h.forward() {
			h.action |= maps.FlowEnded
		}
		table, key := w.Maps.FlowTable(), flowKeyOf(id)
		flow, err := table.Lookup(key)
		if err == nil {
			flow.Action, flow.State = h.action, h.state
			err = table.Put(key, flow)
		}
		if err != nil {
			return fmt.Errorf("end the half of %+v: %w", id, err)
		}
	}
	return nil
}

// Silence makes the client of an embryo one that has waited long enough to send its SYN again, if what it happens upon
// is one's forward half. It happens upon young ones: most are soon established, or evicted.
func (m *Model) Silence(w *World, g *Generator) error {
	young := m.born[max(0, len(m.born)-64):]
	if len(young) == 0 {
		return nil
	}
	id := young[g.rand.IntN(len(young))]
	if h := m.embryos[id]; h == nil || !h.forward() {
		return nil
	}
	return m.silence(w, id)
}

func (m *Model) silence(w *World, id flowID) error {
	embryo, err := w.Maps.EmbryoTable().Lookup(flowKeyOf(id))
	if err != nil {
		return fmt.Errorf("read the embryo of %+v: %w", id, err)
	}
	embryo.LastSeen -= m.settings.Constants.JiffiesPerSecond
	m.silent[id] = true
	return w.Maps.EmbryoTable().Put(flowKeyOf(id), embryo)
}

// Inherit records a foreign flow, as the agent does at its start, that has the tuple of some other flow.
func (m *Model) Inherit(w *World, g *Generator) error {
	id, ok := m.someHalf(g)
	if !ok {
		return nil
	}
	return m.inherit(w, id)
}

func (m *Model) inherit(w *World, id flowID) error {
	id.edge = maps.EdgeIDForeign
	if m.flows[id] != nil {
		return nil
	}
	key := flowKeyOf(id)
	flow := maps.Flow{Seal: key.Seal(), Action: maps.FlowForeign, State: maps.FlowEstablished}
	if err := w.Maps.FlowTable().Put(key, flow); err != nil {
		return fmt.Errorf("record the foreign flow %+v: %w", id, err)
	}
	m.flows[id] = &half{action: maps.FlowForeign, state: maps.FlowEstablished}
	m.born = append(m.born, id)
	return nil
}

// someHalf returns a half that there is or has been.
func (m *Model) someHalf(g *Generator) (flowID, bool) {
	if len(m.born) == 0 {
		return flowID{}, false
	}
	return m.born[g.rand.IntN(len(m.born))], true
}
