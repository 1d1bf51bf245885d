package apply

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/maps"
)

// writer is every write the applier makes. Each call is one step; programs look between any two, and the
// agent may end there.
type writer interface {
	put(m *ebpf.Map, key, value any) error
	lead(frontends *ebpf.Map, key maps.FrontendKey, value maps.Frontend) error
	delete(m *ebpf.Map, key any) error // what is not there is as it should be
	table(at maps.SlotRange, backends []uint32) error
}

// kernelWriter writes to the kernel's maps.
type kernelWriter struct {
	arena  *maps.Arena
	writes atomic.Uint64
}

func (w *kernelWriter) put(m *ebpf.Map, key, value any) error {
	w.writes.Add(1)
	if err := m.Put(key, value); err != nil {
		return fmt.Errorf("write %s: %w", m, err)
	}
	return nil
}

// lead writes a frontend's value where the one before is: there is always one to be found (bpf/types.h).
func (w *kernelWriter) lead(frontends *ebpf.Map, key maps.FrontendKey, value maps.Frontend) error {
	w.writes.Add(1)
	if err := frontends.Update(&key, &value, ebpf.UpdateLock); err != nil {
		return fmt.Errorf("write %s: %w", frontends, err)
	}
	return nil
}

func (w *kernelWriter) delete(m *ebpf.Map, key any) error {
	w.writes.Add(1)
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from %s: %w", m, err)
	}
	return nil
}

func (w *kernelWriter) table(at maps.SlotRange, backends []uint32) error {
	w.writes.Add(1)
	return w.arena.Write(at, backends)
}
