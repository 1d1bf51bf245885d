package packet

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// Packets of one run, by each of the programs that packets from outside meet first.
const randomPackets = 1_000_000

// Flows and counters are compared with the model's, and forgotten, after so many packets.
const randomRound = 8_000

// A million random packets: the programs and the model agree about every verdict, byte, flow and counter.
// WEIR_SEED repeats a run, as far as what the programs pick allows.
func TestRandomPackets(t *testing.T) {
	for i, arrival := range []Program{NodeXDP, NodeIngress} {
		t.Run(string(arrival), func(t *testing.T) {
			t.Parallel()
			defer pinToNthCPU(t, i)() // each on a CPU of its own
			packets := randomPackets
			if testing.Short() {
				packets /= 50
			}
			runRandom(t, arrival, seed(t), packets)
		})
	}
}

func seed(t *testing.T) uint64 {
	t.Helper()
	chosen := uint64(time.Now().UnixNano())
	if text := os.Getenv("WEIR_SEED"); text != "" {
		var err error
		if chosen, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("WEIR_SEED: %v", err)
		}
	}
	t.Logf("WEIR_SEED=%d", chosen)
	return chosen
}

func runRandom(t *testing.T, arrival Program, seed uint64, packets int) {
	world, model := randomWorld(t)
	generator := NewGenerator(seed, world, model, RandomServices(), arrival)
	start, tally := time.Now(), make(map[Verdict]int)
	for i := range packets {
		if i%randomRound == 0 {
			beginRound(t, world, model)
			generator.services = RandomServices()
		}
		if err := disturb(world, model, generator); err != nil {
			t.Fatalf("before packet %d: %v", i, err)
		}
		verdict, err := runArrival(world, model, generator.Next())
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		tally[verdict]++
		if (i+1)%randomRound == 0 {
			if err := model.CheckState(world); err != nil {
				t.Fatalf("after packet %d: %v", i, err)
			}
		}
	}
	each := time.Since(start) / time.Duration(packets)
	t.Logf("%d packets, %v each: %v; counters of the last round: %+v", packets, each, tally, model.counters)
}

func randomWorld(t testing.TB) (*World, *Model) {
	t.Helper()
	world := newWorld(t, LargeSettings())
	model, err := NewModel(world, LargeSettings())
	if err != nil {
		t.Fatal(err)
	}
	return world, model
}

func beginRound(t testing.TB, world *World, model *Model) {
	t.Helper()
	if err := world.Reset(); err != nil {
		t.Fatal(err)
	}
	model.Reset()
	if err := serve(world, model, RandomServices()); err != nil {
		t.Fatal(err)
	}
	if err := reserve(world, model, clusterRanges()); err != nil {
		t.Fatal(err)
	}
	hosts := NewHosts()
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		model.insiders = append(model.insiders, prefixOf(hosts.Remote, family), prefixOf(hosts.OtherClient, family))
	}
	if err := world.SetInside(model.insiders...); err != nil {
		t.Fatal(err)
	}
}

func serve(world *World, model *Model, services []compile.Service) error {
	model.Serve(services...)
	return world.Serve(services...)
}

func reserve(world *World, model *Model, reserved Reserved) error {
	model.reserved = reserved
	return world.Reserve(reserved)
}

// disturb does, now and then, what happens beside the packets: an embryo is evicted, a flow swept, or ended because its
// backend is gone, or recorded as foreign, services get other backends.
func disturb(world *World, model *Model, g *Generator) error {
	if g.one(50) {
		return model.Evict(world, g)
	}
	if g.one(4) {
		return model.Silence(world, g)
	}
	if g.one(200) {
		return model.Sweep(world, g)
	}
	if g.one(200) {
		return model.End(world, g)
	}
	if g.one(200) {
		return model.Inherit(world, g)
	}
	if !g.one(4000) {
		return nil
	}
	for i := range g.services {
		backends := &g.services[i].Outside
		if len(*backends) > 2 {
			*backends = slices.Delete(slices.Clone(*backends), 0, 1)
		} else if len(*backends) == 2 {
			*backends = g.services[i].Inside
		}
	}
	return serve(world, model, g.services)
}

// skipped is the verdict of a packet that the kernel does not make a socket buffer of, in a test run.
const skipped Verdict = "skipped"

// runArrival runs a packet through the program it meets, and, where XDP lets it pass, through the one at tc.
func runArrival(world *World, model *Model, arrival Arrival) (Verdict, error) {
	result, err := world.Run(arrival.Program, arrival.Device, arrival.Packet)
	if errors.Is(err, unix.EINVAL) && !arrival.Program.XDP() && tooShortForTC(arrival.Packet) {
		return skipped, nil
	}
	if err != nil {
		return "", err
	}
	if err := model.Check(arrival.Program, arrival.Device, arrival.Packet, result); err != nil {
		return "", err
	}
	if !arrival.Program.XDP() || result.Verdict != Pass {
		return result.Verdict, nil
	}
	next := Arrival{NodeIngress, arrival.Device, append([]byte(nil), result.Packet...)}
	return runArrival(world, model, next)
}

// tooShortForTC tells whether the kernel refuses to make a socket buffer of the packet: it wants an IP header.
func tooShortForTC(packet []byte) bool {
	switch kind := uint16(packet[12])<<8 | uint16(packet[13]); kind {
	case 0x0800:
		return len(packet) < 14+20
	case 0x86dd:
		return len(packet) < 14+40
	default:
		return false
	}
}
