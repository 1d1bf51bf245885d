package hammer

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/maps"
)

// arrival is where a packet went.
type arrival struct {
	backend netip.Addr // the zero one: nowhere, it is as it was sent
	wrong   string     // what should never happen
}

// gun sends packets through a program.
type gun struct {
	name   string
	fire   func(to netip.AddrPort, client uint32) (arrival, error)
	inside bool // the table it asks
}

// packetGun sends SYNs through one of the programs that agents attach; `pass` is its verdict for what goes up the stack.
func packetGun(name string, program *ebpf.Program, inside bool, pass uint32) gun {
	return gun{name, func(to netip.AddrPort, client uint32) (arrival, error) {
		packet := syn(client, to)
		options := ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+64)}
		verdict, err := program.Run(&options)
		if err != nil {
			return arrival{}, err
		}
		address := netip.AddrFrom4([4]byte(options.DataOut[30:34]))
		switch {
		case verdict != pass:
			return arrival{wrong: fmt.Sprintf("verdict %d", verdict)}, nil
		case address == to.Addr():
			return arrival{}, nil
		}
		return arrival{backend: address}, nil
	}, inside}
}

// What bpf/slow.bpf.c returns.
const (
	outcomeBackend    = 0
	outcomeNoFrontend = 1
)

// slowGun asks the program that takes its time.
func slowGun(name string, program *ebpf.Program, inside bool) gun {
	side := byte(1)
	if inside {
		side = 0
	}
	return gun{name, func(to netip.AddrPort, _ uint32) (arrival, error) {
		request := to.Addr().As16()
		data := binary.BigEndian.AppendUint16(request[:], to.Port())
		data = append(data, 6, side)
		options := ebpf.RunOptions{Data: append(data, make([]byte, 44)...), DataOut: make([]byte, 256)}
		code, err := program.Run(&options)
		switch {
		case err != nil || code == outcomeNoFrontend:
			return arrival{}, err
		case code != outcomeBackend:
			return arrival{wrong: fmt.Sprintf("outcome %d of slow.bpf.c", code)}, nil
		}
		return arrival{backend: netip.AddrFrom16([16]byte(options.DataOut[:16])).Unmap()}, nil
	}, inside}
}

// syn returns the nth client's first packet.
func syn(n uint32, to netip.AddrPort) []byte {
	packet := make([]byte, 14+20+20) // to the MAC that is all zero: the loopback device's, by which test runs arrive
	binary.BigEndian.PutUint16(packet[12:], 0x0800)
	ip, tcp := packet[14:34], packet[34:]
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	binary.BigEndian.PutUint16(ip[2:], 40)
	host := n / 60000
	copy(ip[12:], []byte{172, 16, byte(host >> 7), 1 + byte(host)&127})
	copy(ip[16:], to.Addr().AsSlice())
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(tcp, 1024+uint16(n%60000))
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	tcp[12], tcp[13] = 5<<4, 2
	return packet
}

// shoot sends a packet and checks that its VIP had that backend at some moment between sending and arrival.
func (h *hammer) shoot(g gun, n int, client uint32) (served bool, err error) {
	from := h.lines[n].now()
	got, err := g.fire(vip(n), client)
	if err != nil {
		return false, err
	}
	for _, state := range h.lines[n].since(from) {
		may := state.outside
		if g.inside {
			may = state.inside
		}
		if got.wrong == "" && (may[got.backend] || !got.backend.IsValid() && state.nowhere) {
			return got.backend.IsValid(), nil
		}
	}
	return false, fmt.Errorf("%s: a packet to %s went to %q %s", g.name, vip(n), got.backend, got.wrong)
}

// One goroutine replaces services, reuses records, slots and backend indices, and moves frontends, as fast as it can;
// another sends packets. No packet goes to a backend that its frontend did not have at that time, and none is lost.
func TestHammer(t *testing.T) {
	h := newHammer(t)
	if err := h.set.PutDevice(1, maps.Device{Edge: maps.EdgePod, EdgeId: 1}); err != nil {
		t.Fatal(err)
	}
	guns := []gun{
		packetGun("pod_ingress", h.programs.PodIngress, true, 0xffffffff),
		packetGun("node_xdp", h.programs.NodeXDP, false, 2),
	}
	h.run(t, guns)
}

// The same with a program that is so slow that whatever is given out again without a grace period is seen in use.
func TestHammerSlow(t *testing.T) {
	h := newHammer(t)
	spec, err := loadSlow()
	if err != nil {
		t.Fatal(err)
	}
	programs, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements(h.set, spec)})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer programs.Close()
	slow := programs.Programs["slow"]
	h.run(t, []gun{slowGun("slow, inside", slow, true), slowGun("slow, outside", slow, false)})
}

// replacements returns the set's maps that an object has, whose definitions get their sizes.
func replacements(set *maps.Set, spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	all := set.Replacements()
	for name, m := range all {
		if definition := spec.Maps[name]; definition != nil {
			definition.MaxEntries = m.MaxEntries()
		} else {
			delete(all, name)
		}
	}
	return all
}

// run fires while it strikes.
func (h *hammer) run(t *testing.T, guns []gun) {
	t.Helper()
	deadline := time.Now().Add(4 * time.Second)
	packets, served := uint32(0), 0
	var firing sync.WaitGroup
	firing.Go(func() {
		random := rand.New(rand.NewPCG(1, 2))
		for ; time.Now().Before(deadline) && !t.Failed(); packets++ {
			hit, err := h.shoot(guns[random.IntN(len(guns))], random.IntN(vipsCount), packets)
			if err != nil {
				t.Error(err)
			}
			if hit {
				served++
			}
		}
	})
	for time.Now().Before(deadline) && !t.Failed() {
		if err := h.strike(); err != nil {
			t.Error(err)
		}
	}
	firing.Wait()
	t.Logf("%d changes by %d agents, %d sweeps, %d backends at %d indices, %d packets, %d of them to a backend",
		h.strikes, h.restarts, h.sweeps, h.hosts, h.set.Backends.MaxEntries(), packets, served)
	if !t.Failed() && (h.strikes < 100 || served < 1000 || h.hosts < 2*h.set.Backends.MaxEntries()) {
		t.Error("that is too little to prove anything")
	}
}
