package apply

import (
	"fmt"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Tunnels has packets for backends on nodes that take part in DSR sent in tunnels, while send says so, and those for backends
// of this node taken out of other nodes' tunnels. Without this option, or the next one, neither is done.
func Tunnels(send func() bool) Option {
	return func(a *Applier) { a.send, a.take = send, always }
}

// Leaving has packets taken out of other nodes' tunnels while take says so, and none sent.
func Leaving(take func() bool) Option {
	return func(a *Applier) { a.take = take }
}

func always() bool { return true }
func never() bool  { return false }

// targets is what map tunnel_targets holds: the backends of this node that tunnels lead to.
type targets struct {
	of    map[backendKey]uint32   // -> backend index
	full  map[backendKey]struct{} // those that are to be there and have no room
	limit int
}

// readTargets reads back where tunnels lead to.
func readTargets(set *maps.Set) (targets, error) {
	t := targets{of: map[backendKey]uint32{}, full: map[backendKey]struct{}{}, limit: int(set.TunnelTargets.MaxEntries())}
	err := maps.Each(set.TunnelTargets, func(key maps.TunnelTarget, index uint32) bool {
		t.of[backendKey{key.Address, key.Port, compile.Protocol(key.Protocol)}] = index
		return true
	})
	return t, err
}

// TunnelsChanged brings the backends up to date after the answer of send or take has changed. After an error it is to be
// called again. It must not be called before Sync.
func (a *Applier) TunnelsChanged() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	work := func() error { return a.writeBackends(a.state.all()) }
	if a.state == nil {
		work = a.convergeAll
	}
	return a.try(work)
}

// openTarget has packets to a backend of this node taken out of tunnels.
func (a *Applier) openTarget(b *backend) error {
	t := &a.state.targets
	index, held := t.of[b.key()]
	if held && index == b.index {
		return nil
	}
	if !held && len(t.of) >= t.limit {
		t.full[b.key()] = struct{}{}
		return nil
	}
	key := maps.TunnelTargetOf(b.key().at(), uint8(b.key().protocol))
	if err := a.write.put(a.set.TunnelTargets, &key, b.index); err != nil {
		return err
	}
	t.of[b.key()] = b.index
	delete(t.full, b.key())
	return nil
}

// closeTarget ends that. It is called before the index of a backend is given to another.
func (a *Applier) closeTarget(b *backend) error {
	t := &a.state.targets
	delete(t.full, b.key())
	if index, held := t.of[b.key()]; !held || index != b.index {
		return nil
	}
	return a.deleteTarget(b.key())
}

func (a *Applier) deleteTarget(of backendKey) error {
	key := maps.TunnelTargetOf(of.at(), uint8(of.protocol))
	if err := a.write.delete(a.set.TunnelTargets, &key); err != nil {
		return err
	}
	delete(a.state.targets.of, of)
	return nil
}

// clearStrayTargets deletes those that lead to no backend, as far as records say.
func (a *Applier) clearStrayTargets() error {
	for key, index := range a.state.targets.of {
		if b := a.state.backends[key]; b != nil && b.index == index {
			continue
		}
		if err := a.deleteTarget(key); err != nil {
			return err
		}
	}
	return nil
}

// openLeftOut tries backends again for which there was no room, if some has come free.
func (a *Applier) openLeftOut() error {
	t := &a.state.targets
	for key := range t.full {
		if len(t.of) >= t.limit {
			return nil
		}
		if err := a.openTarget(a.state.backends[key]); err != nil {
			return err
		}
	}
	return nil
}

// problem says how many backends tunnels do not lead to.
func (t *targets) problem() []compile.Problem {
	if len(t.full) == 0 {
		return nil
	}
	return []compile.Problem{{
		Object: "Map tunnel_targets", Reason: "NoRoom",
		Message: fmt.Sprintf("%d endpoints of this node have no room beside %d others: what other nodes send them in tunnels is lost; run fewer on it, or its agent with --forward snat",
			len(t.full), t.limit),
	}}
}
