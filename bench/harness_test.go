package bench

import (
	"net/netip"
	"testing"
)

// What the harness makes is what Go thinks it makes: each packet's flow, addresses, ports and checksums.
func TestHarnessPackets(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, k := range kinds() {
			for _, at := range []hook{xdp, tc} {
				for _, flows := range []uint32{newFlows, 1, 1000} {
					checkHarness(t, w, k, at, flows)
				}
			}
		}
	})
}

func checkHarness(t *testing.T, w *world, k kind, at hook, flows uint32) {
	t.Helper()
	p := w.outside(k, floorFrontend(k.Family))
	h, err := newHarness(at, w.empty[at], p, flows, w.network.uplink.Attrs().Index)
	if err != nil {
		t.Errorf("%s %v: %v", at, k, err)
		return
	}
	defer h.close()
	const packets = 3000
	sources := map[netip.AddrPort]bool{}
	for range packets {
		out, err := h.run(1)
		if err != nil {
			t.Errorf("%s %v: %v", at, k, err)
			return
		}
		got, err := k.read(out.frame)
		if err != nil || got.source != p.source(out.flow) || got.destination != p.destination || out.verdict != at.pass() {
			t.Errorf("%s %v: packet of flow %d is %+v, %v", at, k, out.flow, got, err)
			return
		}
		sources[got.source] = true
	}
	if want := int(flows); flows == newFlows && len(sources) != packets || flows != newFlows && len(sources) != want {
		t.Errorf("%s %v, %d flows: %d packets are of %d flows", at, k, flows, packets, len(sources))
	}
}

// Flows differ up to the last that FlowsMax allows.
func TestSources(t *testing.T) {
	for _, family := range families() {
		p := packets{kind: kind{Family: family}, clients: addressesOf(family).clients}
		seen := map[netip.AddrPort]uint32{}
		for _, flow := range []uint32{0, 1, 1<<portBits - 1, 1 << portBits, 1<<portBits + 1, FlowsMax - 1} {
			source := p.source(flow)
			if other, twice := seen[source]; twice {
				t.Errorf("%s: flows %d and %d both come from %s", family, other, flow, source)
			}
			seen[source] = flow
		}
	}
}

func TestReadNoticesChecksums(t *testing.T) {
	for _, k := range kinds() {
		a := addressesOf(k.Family)
		p := packets{
			kind: k, clients: a.clients, destination: netip.AddrPortFrom(a.vip, 80),
			to: []byte{2, 0, 0, 0, 0, 1}, from: []byte{2, 0, 0, 0, 0, 2},
		}
		if _, err := k.read(p.frame()); err != nil {
			t.Errorf("%v: %v", k, err)
		}
		for at := etherBytes; at < frameBytes; at++ {
			if k.ipBytes() == ipv6Bytes && (at < etherBytes+6 || at == etherBytes+7) {
				continue // not covered by any checksum
			}
			frame := p.frame()
			frame[at] ^= 0x10
			if _, err := k.read(frame); err == nil {
				t.Errorf("%v: byte %d was changed and the checksums are still right", k, at)
			}
		}
	}
}
