package apply

import (
	"iter"

	"github.com/weir-lb/weir/maps"
)

// writeBackends writes the records of those backends whose flags are not what they should be. A tunnel leads to a backend
// of this node after its record says so, and until then.
func (a *Applier) writeBackends(backends iter.Seq[*backend]) error {
	send, take := a.send(), a.take()
	for b := range backends {
		if b.index == 0 {
			continue
		}
		if err := a.writeBackend(b, send, take); err != nil {
			return err
		}
	}
	return nil
}

func (a *Applier) writeBackend(b *backend, send, take bool) error {
	flags := b.flags(send)
	taken := take && flags&maps.BackendLocal != 0
	if !taken {
		if err := a.closeTarget(b); err != nil {
			return err
		}
	}
	if flags != b.record.Flags {
		b.record.Flags = flags
		if err := a.write.put(a.set.Backends, b.index, &b.record); err != nil {
			return err
		}
	}
	if !taken {
		return nil
	}
	return a.openTarget(b)
}
