package maps

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// milestoneEvery is for how many entries of a flow map there is a milestone: an entry of no flow at which a sweep
// pauses (bpf/sweep.h). A map has about as many buckets as entries, and milestones fall into them by chance: the
// longest way between two is some ten times as many, half a millisecond.
const milestoneEvery = 4096

// isMilestone reports whether the key is of no flow: no packet of protocol 0 has a key.
func (k bpfFlowKey) isMilestone() bool { return k.Protocol == 0 }

// PlantMilestones puts the milestones into the flow maps that have lost them, or never had any.
func (s *Set) PlantMilestones() error {
	return errors.Join(
		plant(s.FlowsIPv4, func(n uint32) FlowKeyIPv4 { return FlowKeyIPv4{Source: n} }),
		plant(s.FlowsIPv6, milestone),
		plant(s.Embryos, milestone),
	)
}

// milestone returns the key of the nth milestone.
func milestone(n uint32) FlowKey {
	var key FlowKey
	binary.NativeEndian.PutUint32(key.Tuple.Source.Bytes[12:], n)
	return key
}

// plant puts the milestones into one map. Where that is full they are missed by nobody: it has no long way without an
// element.
func plant[K any](m *ebpf.Map, key func(uint32) K) error {
	for n := range m.MaxEntries() / milestoneEvery {
		at := key(n)
		err := m.Update(&at, &Flow{}, ebpf.UpdateNoExist)
		if errors.Is(err, unix.E2BIG) {
			return nil
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("put a milestone into %s: %w", m, err)
		}
	}
	return nil
}
