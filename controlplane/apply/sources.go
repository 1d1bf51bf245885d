package apply

import (
	"slices"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// sourceKeys are source ranges of one service.
type sourceKeys map[maps.SourceKey]struct{}

// sources is what map sources holds.
type sources struct {
	of    map[uint32]sourceKeys // by service id
	used  int
	limit int
}

// readSources reads back who may use the load balancer addresses of which service.
func readSources(set *maps.Set) (sources, error) {
	s := sources{of: map[uint32]sourceKeys{}, limit: int(set.Sources.MaxEntries())}
	err := maps.EachKey(set.Sources, func(key maps.SourceKey) { s.add(key) })
	return s, err
}

func (s *sources) add(key maps.SourceKey) {
	keys := s.of[key.Service]
	if keys == nil {
		keys = sourceKeys{}
		s.of[key.Service] = keys
	}
	if _, there := keys[key]; !there {
		keys[key] = struct{}{}
		s.used++
	}
}

func (s *sources) remove(key maps.SourceKey) {
	keys := s.of[key.Service]
	if _, there := keys[key]; !there {
		return
	}
	delete(keys, key)
	s.used--
	if len(keys) == 0 {
		delete(s.of, key.Service)
	}
}

// sourceKeysOf returns the source ranges that a service shall have.
func sourceKeysOf(id uint32, want compile.Service) sourceKeys {
	keys := make(sourceKeys, len(want.Sources))
	for _, prefix := range want.Sources {
		keys[maps.SourceKeyOf(id, prefix)] = struct{}{}
	}
	return keys
}

// fits checks that what is to be added has room.
func (s *sources) fits(id uint32, keys sourceKeys) *shortage {
	more := 0
	for key := range keys {
		if _, there := s.of[id][key]; !there {
			more++
		}
	}
	if room := s.limit - s.used; more > room {
		return &shortage{
			what: "source ranges", need: more, room: room, size: s.limit, flag: "--max-source-ranges", closed: true,
		}
	}
	return nil
}

// admit writes a service's new source ranges, and returns those that it shall have, for dismiss when its record is the
// right one. Where there is no room it shall have none: nobody may use its load balancer addresses then.
func (a *Applier) admit(id uint32, want compile.Service) (sourceKeys, *shortage, error) {
	keys := sourceKeysOf(id, want)
	if short := a.state.sources.fits(id, keys); short != nil {
		return nil, short, nil
	}
	for key := range keys {
		if _, there := a.state.sources.of[id][key]; there {
			continue
		}
		if err := a.write.put(a.set.Sources, &key, uint32(1)); err != nil {
			return nil, nil, err
		}
		a.state.sources.add(key)
	}
	return keys, nil, nil
}

// dismiss deletes the source ranges of a service but for those to be kept.
func (a *Applier) dismiss(id uint32, keep sourceKeys) error {
	for key := range a.state.sources.of[id] {
		if _, stays := keep[key]; stays {
			continue
		}
		if err := a.write.delete(a.set.Sources, &key); err != nil {
			return err
		}
		a.state.sources.remove(key)
		a.room = true
	}
	return nil
}

// restrict keeps a service that stays as it was, for want of room, from being open to more than it should.
func (c *change) restrict(want compile.Service) error {
	is := c.state.services[want.ID]
	if is == nil || !want.Restricted {
		return nil
	}
	for _, key := range slices.Clone(is.frontends) {
		leads := c.state.frontends[key]
		if leads.kind != maps.FrontendLoadBalancer || leads.record.value.Flags&maps.ServiceSourceRanges != 0 {
			continue
		}
		if err := c.deleteFrontend(key); err != nil {
			return err
		}
	}
	keys, _, err := c.admit(is.id, want)
	if err != nil {
		return err
	}
	return c.dismiss(is.id, keys)
}

// clearStraySources deletes the source ranges of what is no service.
func (a *Applier) clearStraySources() error {
	served := make(map[uint32]struct{}, len(a.state.services))
	for _, s := range a.state.services {
		served[s.id] = struct{}{}
	}
	for id := range a.state.sources.of {
		if _, there := served[id]; there {
			continue
		}
		if err := a.dismiss(id, nil); err != nil {
			return err
		}
	}
	return nil
}
