package apply

import (
	gomaps "maps"
	"slices"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// change is what one call does.
type change struct {
	*Applier
	claims map[maps.FrontendKey]compile.ID // the changed service that each frontend shall belong to
	due    map[compile.ID]struct{}         // changed services that have not had their turn
}

// frontendKinds returns the kinds of the frontends that a service shall have.
func frontendKinds(want compile.Service) map[maps.FrontendKey]maps.FrontendKind {
	kinds := make(map[maps.FrontendKey]maps.FrontendKind, len(want.Frontends))
	for _, frontend := range want.Frontends {
		kinds[maps.FrontendKeyOf(frontend.Address, uint8(want.ID.Protocol))] = kindOf(frontend.Kind)
	}
	return kinds
}

func kindOf(kind compile.FrontendKind) maps.FrontendKind {
	switch kind {
	case compile.ClusterIP:
		return maps.FrontendClusterIP
	case compile.NodePort:
		return maps.FrontendNodePort
	case compile.LoadBalancer:
		return maps.FrontendLoadBalancer
	default:
		return maps.FrontendExternalIP
	}
}

// converge writes what differs. A frontend that moves from one service to another leads to the one until it
// leads to the other, whichever comes first.
func (a *Applier) converge(changed []*compile.Service, removed []compile.ID) error {
	c := &change{Applier: a, claims: map[maps.FrontendKey]compile.ID{}, due: map[compile.ID]struct{}{}}
	for _, want := range changed {
		c.due[want.ID] = struct{}{}
		for key := range frontendKinds(*want) {
			c.claims[key] = want.ID
		}
	}
	if err := c.listAll(changed, removed); err != nil {
		return err
	}
	if err := c.removeAll(removed); err != nil {
		return err
	}
	for _, want := range changed {
		if err := c.place(*want, true); err != nil {
			return err
		}
	}
	if err := c.removeAll(removed); err != nil { // those whose frontends others took over
		return err
	}
	if err := c.releaseClaimed(); err != nil {
		return err
	}
	if err := c.placeLeftOut(); err != nil {
		return err
	}
	return c.openLeftOut()
}

// listAll takes in what the services say of their backends, and writes the flags that change.
func (c *change) listAll(changed []*compile.Service, removed []compile.ID) error {
	var concerned []*backend
	for _, id := range removed {
		delete(c.leftOut, id)
		concerned = append(concerned, c.state.list(id, nil)...)
	}
	for _, want := range changed {
		concerned = append(concerned, c.state.list(want.ID, want)...)
	}
	return c.writeBackends(slices.Values(concerned))
}

// isHeld tells whether a frontend is about to be taken over, and must lead somewhere until then.
func (c *change) isHeld(key maps.FrontendKey) bool {
	_, due := c.due[c.claims[key]]
	return due
}

// removeAll takes services out, but for those that have a frontend which another is about to take over.
func (c *change) removeAll(removed []compile.ID) error {
	for _, id := range removed {
		gone, there := c.state.services[id]
		if !there {
			continue
		}
		if err := c.remove(gone); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) remove(gone *service) error {
	if slices.ContainsFunc(gone.frontends, c.isHeld) {
		return nil
	}
	if err := c.endAll(gone); err != nil {
		return err
	}
	for _, key := range slices.Clone(gone.frontends) {
		if err := c.deleteFrontend(key); err != nil {
			return err
		}
	}
	if err := c.dismiss(gone.id, nil); err != nil {
		return err
	}
	return c.writeBackends(slices.Values(c.state.depart(gone)))
}

// place gives a service what it wants, or notes what there is no room for, and leaves it as it was.
func (c *change) place(want compile.Service, mayWait bool) error {
	delete(c.due, want.ID)
	delete(c.leftOut, want.ID)
	p, short := c.state.plan(want)
	if short != nil && mayWait && len(c.state.retired) > 0 {
		if err := c.releaseRetired(); err != nil {
			return err
		}
		p, short = c.state.plan(want)
	}
	if short != nil {
		c.leftOut[want.ID] = short
		if mayWait {
			c.log.Warn("no room for a service", zap.Stringer("service", want.ID), zap.Stringer("short", short))
		}
		return c.restrict(want)
	}
	return c.carryOut(p, want)
}

// carryOut does what a plan says. Source ranges are there before a record asks for them, and until none does.
func (c *change) carryOut(p *plan, want compile.Service) error {
	sources, short, err := c.admit(p.service.id, want)
	if err != nil {
		return err
	}
	if short != nil {
		c.leftOut[want.ID] = short
		c.log.Warn("no room for who may use a service", zap.Stringer("service", want.ID), zap.Stringer("short", short))
	}
	if err := c.endLeft(p.service, want); err != nil {
		return err
	}
	if p.fresh {
		if err := c.writeRecord(p); err != nil {
			return err
		}
	}
	if err := c.lead(p.service, p.record, p.frontends); err != nil {
		return err
	}
	return c.dismiss(p.service.id, sources)
}

// writeRecord writes what a new record needs, and then the record. Nothing leads to it yet.
func (c *change) writeRecord(p *plan) error {
	if err := c.resumeOrphans(p.backends); err != nil {
		return err
	}
	if err := c.writeBackends(slices.Values(p.backends)); err != nil {
		return err
	}
	for _, t := range p.newTables {
		if t.at.Count == 0 {
			continue
		}
		if err := c.write.table(t.at, t.slots()); err != nil {
			return err
		}
	}
	index := p.record.index
	if err := c.write.put(c.set.Services, index, &p.record.value); err != nil {
		return err
	}
	name := maps.NameOf(p.service.id, p.service.name.String())
	if err := c.write.put(c.set.ServiceNames, index, &name); err != nil {
		return err
	}
	return c.rename(p.service, index)
}

// rename moves a service's name to another index. Until frontends lead there, the old record keeps its own.
func (c *change) rename(s *service, index uint32) error {
	old := s.named
	s.named = index
	if s.current != nil || old == 0 {
		return nil
	}
	// It had departed: of its old record there is only the name.
	delete(c.state.departed, s.name)
	s.leaving = nil
	c.state.retired = append(c.state.retired, retiree{index: old})
	return c.write.delete(c.set.ServiceNames, old)
}

// lead makes all frontends of a service, and no others, lead to its record.
func (c *change) lead(s *service, to *record, wanted map[maps.FrontendKey]maps.FrontendKind) error {
	c.state.services[s.name] = s
	from := s.current
	if from != to {
		s.others = slices.DeleteFunc(s.others, func(r *record) bool { return r == to })
		s.current, s.named = to, to.index
		if from != nil {
			s.others = append(s.others, from)
		}
	}
	for key, kind := range wanted {
		if err := c.putFrontend(key, lead{to, kind}); err != nil {
			return err
		}
	}
	if err := c.deleteOthers(s, wanted); err != nil || from == nil {
		return err
	}
	return c.dropUnled(from)
}

// deleteOthers takes frontends that a service shall not have from it. Those that are about to be taken over stay
// as they were until then.
func (c *change) deleteOthers(s *service, wanted map[maps.FrontendKey]maps.FrontendKind) error {
	for _, key := range slices.Clone(s.frontends) {
		if _, keep := wanted[key]; keep || c.isHeld(key) {
			continue
		}
		if err := c.deleteFrontend(key); err != nil {
			return err
		}
	}
	return nil
}

// putFrontend makes a frontend lead to a record.
func (c *change) putFrontend(key maps.FrontendKey, to lead) error {
	from := c.state.frontends[key]
	if from == to {
		return nil
	}
	value := key.Seal(to.kind, to.record.index, to.record.value.Generation)
	if err := c.write.lead(c.set.Frontends, key, value); err != nil {
		return err
	}
	c.state.frontends[key] = to
	to.record.frontends++
	err := c.unlead(key, from.record)
	to.record.service.frontends = append(to.record.service.frontends, key)
	return err
}

// deleteFrontend takes a frontend out.
func (c *change) deleteFrontend(key maps.FrontendKey) error {
	if err := c.write.delete(c.set.Frontends, &key); err != nil {
		return err
	}
	from := c.state.frontends[key]
	delete(c.state.frontends, key)
	c.room = true
	return c.unlead(key, from.record)
}

// unlead notes that a frontend does not lead to a record any more.
func (c *change) unlead(key maps.FrontendKey, from *record) error {
	if from == nil {
		return nil
	}
	from.frontends--
	from.service.frontends = slices.DeleteFunc(from.service.frontends, func(one maps.FrontendKey) bool { return one == key })
	return c.dropUnled(from)
}

// dropUnled retires a record that is not its service's current one, and to which no frontend leads.
func (c *change) dropUnled(old *record) error {
	of := old.service
	i := slices.Index(of.others, old)
	if i < 0 || old.frontends > 0 {
		return nil
	}
	of.others = slices.Delete(of.others, i, i+1)
	gone := c.state.retire(old)
	c.state.retired = append(c.state.retired, retiree{index: old.index})
	if err := c.writeBackends(slices.Values(gone)); err != nil {
		return err
	}
	return c.write.delete(c.set.ServiceNames, old.index)
}

// releaseClaimed deletes frontends of services that shall not have them where those that shall were left out.
func (c *change) releaseClaimed() error {
	for key, id := range c.claims {
		owner := c.state.frontends[key].record
		if owner == nil || owner.service.name == id {
			continue
		}
		if err := c.deleteFrontend(key); err != nil {
			return err
		}
	}
	return nil
}

// placeLeftOut tries services again for which there was no room, if some has come free.
func (c *change) placeLeftOut() error {
	if !c.room {
		return nil
	}
	c.room = false
	for _, id := range slices.SortedFunc(gomaps.Keys(c.leftOut), compile.ID.Compare) {
		if err := c.place(*c.wanted[id], false); err != nil {
			return err
		}
	}
	return nil
}

// clearStrays takes out what belongs to no service: what a predecessor left, or somebody else wrote.
func (a *Applier) clearStrays() error {
	c := &change{Applier: a}
	for key, is := range a.state.frontends {
		if is.record == nil {
			if err := c.deleteFrontend(key); err != nil {
				return err
			}
		}
	}
	for _, stray := range a.state.strays {
		last := stray.current
		stray.others = append(stray.others, last)
		for _, key := range slices.Clone(stray.frontends) {
			if err := c.deleteFrontend(key); err != nil {
				return err
			}
		}
		if err := c.dropUnled(last); err != nil {
			return err
		}
	}
	for _, index := range a.state.leftovers {
		if err := a.write.delete(a.set.ServiceNames, index); err != nil {
			return err
		}
		if index != 0 {
			a.state.records.put(index)
		}
	}
	a.state.strays, a.state.leftovers = nil, nil
	if err := a.clearStraySources(); err != nil {
		return err
	}
	if err := a.clearStrayTargets(); err != nil {
		return err
	}
	return a.writeBackends(a.state.all())
}
