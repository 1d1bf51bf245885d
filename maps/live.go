package maps

import "fmt"

// ChangeLive changes what programs are told while they run. The agent is the only writer, from several goroutines.
func (s *Set) ChangeLive(change func(*LiveSettings)) error {
	s.live.Lock()
	defer s.live.Unlock()
	var settings LiveSettings
	if err := s.LiveConfig.Lookup(uint32(0), &settings); err != nil {
		return fmt.Errorf("read map live_config: %w", err)
	}
	before := settings
	change(&settings)
	if settings == before {
		return nil
	}
	if err := s.LiveConfig.Put(uint32(0), &settings); err != nil {
		return fmt.Errorf("write to map live_config: %w", err)
	}
	return nil
}
