package bench

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/maps"
)

// flowsAtOnce are opened before they are established: few enough for the table of embryos to keep them all.
const flowsAtOnce = 8192

// establish makes flows 0 to count-1 of the subject's packets into established ones. Its program opens them; what
// the backends' answers and the clients' next packets would do, moving each half from one table to the other, is
// done here in bulk.
func (w *world) establish(s *subject, count uint32) error {
	opening := s.packets
	opening.syn = true
	h, err := newHarness(hook(s.Hook), s.program, opening, newFlows, s.ifindex)
	if err != nil {
		return err
	}
	defer h.close()
	for done := uint32(0); done < count; {
		chunk := min(flowsAtOnce, count-done)
		if _, err := h.run(chunk); err != nil {
			return err
		}
		moved, err := w.moveEmbryos()
		if err != nil {
			return err
		}
		if moved != 2*int(chunk) {
			return fmt.Errorf("%d packets opened %d halves of flows, not %d", chunk, moved, 2*chunk)
		}
		done += chunk
	}
	return nil
}

// moveEmbryos empties the table of embryos into the flow table. It returns how many there were.
func (w *world) moveEmbryos() (int, error) {
	moved := 0
	err := drain(w.set.Embryos, func(keys []maps.FlowKey, halves []maps.Flow) error {
		for i := range halves {
			halves[i].State = maps.FlowEstablished
		}
		moved += len(keys)
		if err := w.set.FlowTable().PutAll(keys, halves); err != nil {
			return fmt.Errorf("establish flows: %w", err)
		}
		return nil
	})
	return moved, err
}

// forget empties the tables.
func (w *world) forget() error {
	return errors.Join(drain(w.set.Embryos, nothing[maps.FlowKey]),
		drain(w.set.FlowsIPv4, nothing[maps.FlowKeyIPv4]), drain(w.set.FlowsIPv6, nothing[maps.FlowKey]))
}

func nothing[K any]([]K, []maps.Flow) error { return nil }

// drain takes everything out of a map of flows.
func drain[K any](m *ebpf.Map, each func([]K, []maps.Flow) error) error {
	keys, halves := make([]K, flowsAtOnce), make([]maps.Flow, flowsAtOnce)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookupAndDelete(&cursor, keys, halves, nil)
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return fmt.Errorf("empty %s: %w", m, err)
		}
		if n > 0 {
			if err := each(keys[:n], halves[:n]); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
	}
}
