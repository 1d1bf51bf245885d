package apply

import (
	"fmt"

	"github.com/weir-lb/weir/maps"
)

// write makes the planned writes. After any of them a reader finds whole tables only.
func (p *plan) write(w writer, set *maps.Set) error {
	if err := p.writeBackends(w, set); err != nil {
		return err
	}
	for i, table := range p.tables {
		if table.Count == 0 {
			continue
		}
		if err := w.putTable(table, p.tableSlots[i]); err != nil {
			return err
		}
	}
	if err := p.writeRecords(w, set); err != nil {
		return err
	}
	return p.writeFrontends(w)
}

func (p *plan) writeBackends(w writer, set *maps.Set) error {
	if err := w.zeroStats(set.BackendStats, p.newBackends); err != nil {
		return err
	}
	if len(p.backendIndices) == 0 {
		return nil
	}
	return w.putBackends(p.backendIndices, p.backendRecords)
}

// writeRecords writes records, then their names: what a successor finds named is whole. One it does not find
// named is free, and so it is: no frontend leads there yet.
func (p *plan) writeRecords(w writer, set *maps.Set) error {
	if len(p.indices) == 0 {
		return nil
	}
	if err := w.zeroStats(set.ServiceStats, p.newIDs); err != nil {
		return err
	}
	if err := w.putServices(p.indices, p.records); err != nil {
		return err
	}
	return w.putNames(p.indices, p.names)
}

func (p *plan) writeFrontends(w writer) error {
	keys := make([]maps.FrontendKey, 0, len(p.frontends))
	values := make([]maps.Frontend, 0, len(p.frontends))
	for key, to := range p.frontends {
		keys = append(keys, key)
		values = append(values, key.Seal(to.index, to.record.Generation))
	}
	if len(keys) > 0 {
		if err := w.putFrontends(keys, values); err != nil {
			return fmt.Errorf("lead frontends to their services: %w", err)
		}
	}
	if len(p.deleted) == 0 {
		return nil
	}
	gone := make([]maps.FrontendKey, 0, len(p.deleted))
	for key := range p.deleted {
		gone = append(gone, key)
	}
	return w.deleteFrontends(gone)
}
