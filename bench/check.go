package bench

import (
	"fmt"

	"github.com/weir-lb/weir/maps"
)

// run sends packets through the subject's program and makes sure that they were what the case says. It returns
// the nanoseconds of CPU time that each took, the harness included.
func (s *subject) run(w *world, count uint32) (float64, error) {
	before, err := s.counted(w)
	if err != nil {
		return 0, err
	}
	out, err := s.harness.run(count)
	if err != nil {
		return 0, err
	}
	after, err := s.counted(w)
	if err != nil {
		return 0, err
	}
	if err := s.checkTraffic(before, after, count); err != nil {
		return 0, err
	}
	if err := s.checkLast(w, out); err != nil {
		return 0, fmt.Errorf("flow %d: %w", out.flow, err)
	}
	return out.seconds * 1e9 / float64(count), nil
}

// counted is what the programs have counted of the packets.
func (s *subject) counted(w *world) (maps.Traffic, error) {
	if s.service == nil {
		return maps.Traffic{}, nil
	}
	return w.traffic(s.traffic)
}

// checkTraffic makes sure that all packets were translated, and that they opened flows only if they should.
func (s *subject) checkTraffic(before, after maps.Traffic, count uint32) error {
	if s.service == nil {
		return nil
	}
	packets, opened, expected := after.Packets-before.Packets, after.Flows-before.Flows, uint64(0)
	if s.service.fresh {
		expected = uint64(count)
	}
	if packets != uint64(count) || opened != expected {
		return fmt.Errorf("of %d packets %d were translated and %d opened a flow; %d should have",
			count, packets, opened, expected)
	}
	return nil
}

// checkLast makes sure that the last packet became what it should.
func (s *subject) checkLast(w *world, out outcome) error {
	if out.verdict != s.expect.verdict {
		return fmt.Errorf("verdict %d, not %d", int32(out.verdict), int32(s.expect.verdict))
	}
	got, err := s.packets.read(out.frame)
	if err != nil {
		return err
	}
	if err := s.checkDestination(w, got); err != nil {
		return err
	}
	if err := s.checkSource(got, out.flow); err != nil {
		return err
	}
	to, from := s.packets.to, s.packets.from
	if s.expect.addressed {
		to, from = from, to
	}
	if got.to.String() != to.String() || got.from.String() != from.String() {
		return fmt.Errorf("a frame from %s to %s, not from %s to %s", got.from, got.to, from, to)
	}
	return nil
}

func (s *subject) checkDestination(w *world, got seen) error {
	if s.expect.backendPort == 0 {
		if got.destination != s.packets.destination {
			return fmt.Errorf("sent on to %s, not left alone", got.destination)
		}
		return nil
	}
	if got.destination.Port() != s.expect.backendPort || !w.isBackend(s.packets.Family, got.destination.Addr()) {
		return fmt.Errorf("sent on to %s, which is no backend", got.destination)
	}
	return nil
}

func (s *subject) checkSource(got seen, flow uint32) error {
	client := s.packets.source(flow)
	if !s.expect.forwards {
		if got.source != client || got.ttl != ttl {
			return fmt.Errorf("comes from %s with TTL %d, not from %s with %d", got.source, got.ttl, client, ttl)
		}
		return nil
	}
	node := addressesOf(s.packets.Family).node.Addr()
	if got.source.Addr() != node || got.source.Port() < snatPortMin || got.ttl != ttl-1 {
		return fmt.Errorf("comes from %s with TTL %d, not from a port of SNAT on %s with %d",
			got.source, got.ttl, node, ttl-1)
	}
	return nil
}
