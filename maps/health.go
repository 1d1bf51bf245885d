package maps

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Quarantine is a backend that gets no new flows for a while, since clients have found it silent.
type Quarantine struct {
	Index   uint32
	Address netip.AddrPort
	Left    time.Duration // until one flow is let through
}

// Quarantined returns the backends that are in quarantine now.
func (s *Set) Quarantined() ([]Quarantine, error) {
	now, err := monotonicSeconds()
	if err != nil {
		return nil, err
	}
	records := make(map[uint32]Health)
	err = Each(s.BackendHealth, func(index uint32, health Health) bool {
		if health.Until > now {
			records[index] = health
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", bpfMapBackendHealth, err)
	}
	var all []Quarantine
	for index, health := range records {
		var backend Backend
		if err := s.Backends.Lookup(index, &backend); err != nil {
			return nil, fmt.Errorf("read backend %d: %w", index, err)
		}
		if backend.Generation != health.Generation {
			continue // of the index's last owner
		}
		all = append(all, Quarantine{
			Index: index, Address: netip.AddrPortFrom(backend.Address.Addr(), backend.Port),
			Left: time.Duration(health.Until-now) * time.Second,
		})
	}
	return all, nil
}

// IsQuarantined tells whether a backend is, by its index and generation.
func (s *Set) IsQuarantined(index, generation uint32) (bool, error) {
	now, err := monotonicSeconds()
	if err != nil {
		return false, err
	}
	var health Health
	if err := s.BackendHealth.Lookup(index, &health); err != nil {
		return false, fmt.Errorf("read %s: %w", bpfMapBackendHealth, err)
	}
	return health.Until > now && health.Generation == generation, nil
}

// monotonicSeconds returns the time as programs write it into Health.
func monotonicSeconds() (uint32, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return uint32(now.Sec), nil
}
