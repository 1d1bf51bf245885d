package sweep

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

const jiffiesPerSecond = 100 // as far as the sweeper knows: seconds are what it is told

// bench is what a test sweeps.
type bench struct {
	set     *maps.Set
	sweeper *Sweeper
	applier *apply.Applier
	now     uint32 // jiffies when the test began
	ipv6    bool   // its flows are
}

func newBench(t testing.TB, flows uint32) *bench {
	t.Helper()
	set, err := maps.New(maps.Sizes{
		Services: 64, Frontends: 64, Backends: 64, SlotBlocks: 64, FlowsIPv4: flows, FlowsIPv6: flows, Embryos: 8192, Devices: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	programs, err := loader.Load(set, loader.Constants{SNATPortMin: 61000, SNATPortMax: 65535, JiffiesPerSecond: jiffiesPerSecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { programs.Close() })
	applier, err := apply.New(set, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{set: set, applier: applier, now: jiffies(t)}
	b.sweeper = b.newSweeper(t, programs)
	return b
}

func (b *bench) newSweeper(t testing.TB, programs *loader.Programs) *Sweeper {
	t.Helper()
	sweeper, err := New(Options{
		Set: b.set, Programs: programs, Applier: b.applier,
		Timeouts: Timeouts{
			Unanswered: 30 * time.Second, TCP: 1000 * time.Second, TCPHalfClosed: 300 * time.Second, TCPClosed: 40 * time.Second,
			UDP: 100 * time.Second, SCTP: 210 * time.Second, Foreign: 2000 * time.Second,
		},
		Interval: time.Millisecond, JiffiesPerSecond: jiffiesPerSecond, Log: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return sweeper
}

// jiffies returns the time of the programs.
func jiffies(t testing.TB) uint32 {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SocketFilter, License: "GPL",
		Instructions: asm.Instructions{asm.FnJiffies64.Call(), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	now, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 14)})
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// half is one half of a flow as a test describes it.
type half struct {
	state maps.FlowState
	idle  int // seconds
}

// flowOf returns the keys of the nth flow's halves.
func (b *bench) flowOf(n int, protocol uint8) (forward, reverse maps.FlowKey) {
	client := netip.AddrFrom4([4]byte{192, 0, byte(n >> 16), byte(n >> 8)})
	frontend, backend := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("10.0.0.1")
	if b.ipv6 {
		client = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 12: 1, 13: byte(n >> 16), 14: byte(n >> 8)})
		frontend, backend = netip.MustParseAddr("fd00:96::1"), netip.MustParseAddr("fd00::1")
	}
	from := netip.AddrPortFrom(client, uint16(1024+n&0xff))
	tuple := maps.TupleOf(from, netip.AddrPortFrom(frontend, 80))
	back := maps.TupleOf(netip.AddrPortFrom(backend, 8080), from)
	return maps.FlowKey{Tuple: tuple, Protocol: protocol}, maps.FlowKey{Tuple: back, Protocol: protocol}
}

// put writes the nth flow; a half that is nil is lost.
func (b *bench) put(t testing.TB, table maps.FlowTable, n int, protocol uint8, action maps.FlowAction, forward, reverse *half) {
	t.Helper()
	key, other := b.flowOf(n, protocol)
	for _, entry := range []struct {
		key  maps.FlowKey
		to   maps.Tuple
		half *half
		kind maps.FlowHalf
	}{{key, other.Tuple.Reverse(), forward, maps.FlowHalfForward}, {other, key.Tuple.Reverse(), reverse, maps.FlowHalfReverse}} {
		if entry.half == nil {
			continue
		}
		flow := maps.Flow{
			Seal: entry.key.Seal(),
			To:   entry.to, Action: action, Half: entry.kind, State: entry.half.state, Service: 5, Backend: 7, Generation: 9,
			LastSeen: b.now - uint32(entry.half.idle*jiffiesPerSecond),
		}
		if err := table.Put(entry.key, flow); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *bench) once(t testing.TB) {
	t.Helper()
	if err := b.sweeper.Once(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// there returns which halves of a flow a table has.
func (b *bench) there(t testing.TB, table maps.FlowTable, n int, protocol uint8) string {
	t.Helper()
	forward, reverse := b.flowOf(n, protocol)
	found := ""
	for what, key := range map[string]maps.FlowKey{"forward": forward, "reverse": reverse} {
		_, err := table.Lookup(key)
		if err == nil && found != "" {
			return "both"
		}
		if err == nil {
			found = what
		} else if !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
	}
	return found
}

func TestIdleFlowsAreRemoved(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipv6=%v", ipv6), func(t *testing.T) { testIdleFlowsAreRemoved(t, ipv6) })
	}
}

func testIdleFlowsAreRemoved(t *testing.T, ipv6 bool) {
	const tcp, udp, sctp = 6, 17, 132
	established := func(idle int) *half { return &half{maps.FlowEstablished, idle} }
	closing := func(idle int) *half { return &half{maps.FlowClosing, idle} }
	b := newBench(t, 1024)
	b.ipv6 = ipv6
	for n, test := range []struct {
		what             string
		embryo           bool
		protocol         uint8
		action           maps.FlowAction
		forward, reverse *half
		want             string
	}{
		{"fresh", false, tcp, maps.FlowForward, established(0), established(0), "both"},
		{"idle for less than it may", false, tcp, maps.FlowForward, established(995), established(995), "both"},
		{"idle for too long", false, tcp, maps.FlowForward, established(1001), established(1001), ""},
		{"one half has been busy", false, tcp, maps.FlowForward, established(1001), established(5), "both"},
		{"one half has been busy, the other way", false, tcp, maps.FlowForward, established(5), established(1001), "both"},
		{"UDP idle for too long", false, udp, maps.FlowStack, established(101), established(101), ""},
		{"UDP idle for less than it may", false, udp, maps.FlowStack, established(95), established(120), "both"},
		{"SCTP idle for too long", false, sctp, maps.FlowStack, established(211), established(211), ""},
		{"SCTP idle for less than it may", false, sctp, maps.FlowStack, established(205), established(300), "both"},
		{"SCTP shut down by one side", false, sctp, maps.FlowStack, closing(41), established(41), ""},
		{"SCTP shut down by the other side just now", false, sctp, maps.FlowStack, established(41), closing(35), "both"},
		{"half closed", false, tcp, maps.FlowStack, closing(295), established(295), "both"},
		{"half closed by the other side", false, tcp, maps.FlowStack, established(295), closing(900), "both"},
		{"half closed for too long", false, tcp, maps.FlowStack, closing(301), established(301), ""},
		{"half closed for too long by the other side", false, tcp, maps.FlowStack, established(301), closing(301), ""},
		{"closed by both", false, tcp, maps.FlowStack, closing(41), closing(41), ""},
		{"closed by both just now", false, tcp, maps.FlowStack, closing(41), closing(35), "both"},
		{"reset", false, tcp, maps.FlowStack, &half{maps.FlowClosed, 41}, established(41), ""},
		{"reset by the other side", false, tcp, maps.FlowStack, established(41), &half{maps.FlowClosed, 41}, ""},
		{"one half lost", false, tcp, maps.FlowStack, established(500), nil, "forward"},
		{"one half lost, idle for too long", false, tcp, maps.FlowStack, nil, established(1001), ""},
		{"embryo", true, tcp, maps.FlowStack, &half{maps.FlowUnanswered, 25}, &half{maps.FlowUnanswered, 25}, "both"},
		{"embryo idle for too long", true, tcp, maps.FlowStack, &half{maps.FlowUnanswered, 31}, &half{maps.FlowUnanswered, 31}, ""},
		{"embryo answered", true, udp, maps.FlowStack, &half{maps.FlowUnanswered, 31}, &half{maps.FlowAnswered, 31}, ""},
		{"foreign TCP", false, tcp, maps.FlowForeign, nil, established(1990), "reverse"},
		{"foreign TCP idle for too long", false, tcp, maps.FlowForeign, nil, established(2001), ""},
		{"foreign UDP", false, udp, maps.FlowForeign, nil, established(95), "reverse"},
		{"foreign UDP idle for too long", false, udp, maps.FlowForeign, nil, established(101), ""},
		{"from a tick ahead", false, tcp, maps.FlowStack, established(-1), established(-1), "both"},
	} {
		table := b.set.FlowTable()
		if test.embryo {
			table = b.set.EmbryoTable()
		}
		b.put(t, table, n, test.protocol, test.action, test.forward, test.reverse)
		b.once(t)
		if got := b.there(t, table, n, test.protocol); got != test.want {
			t.Errorf("%s: %q is there, want %q", test.what, got, test.want)
		}
	}
}

// Flows say which service and backend they name: the sweep notes its epoch, which goes on after a restart.
func TestLivingFlowsAreNoted(t *testing.T) {
	b := newBench(t, 1024)
	established := &half{maps.FlowEstablished, 0}
	usage := func() [2]uint32 {
		var last [2]uint32
		for i, noted := range []struct {
			m     *ebpf.Map
			index uint32
		}{{b.set.ServiceUsage, 5}, {b.set.BackendUsage, 7}} {
			if err := noted.m.Lookup(noted.index, &last[i]); err != nil {
				t.Fatal(err)
			}
		}
		return last
	}
	expect := func(what string, want uint32) {
		t.Helper()
		b.once(t)
		if got := usage(); got != [2]uint32{want, want} {
			t.Errorf("%s: epochs %v, want %d", what, got, want)
		}
	}
	expect("no flow", 0)
	b.put(t, b.set.FlowTable(), 1, 6, maps.FlowStack, established, established)
	expect("a flow", 2)
	forward, reverse := b.flowOf(1, 6)
	if err := errors.Join(b.set.FlowTable().Delete(forward), b.set.FlowTable().Delete(reverse)); err != nil {
		t.Fatal(err)
	}
	expect("gone", 2)
	b.put(t, b.set.EmbryoTable(), 2, 6, maps.FlowStack, &half{maps.FlowUnanswered, 0}, nil)
	expect("half an embryo", 4)
	b.put(t, b.set.FlowTable(), 3, 6, maps.FlowForeign, nil, established)
	b.put(t, b.set.EmbryoTable(), 2, 6, maps.FlowStack, &half{maps.FlowUnanswered, 100}, nil)
	expect("a foreign flow and an expired embryo", 4)

	b.sweeper = b.newSweeper(t, b.sweeper.options.Programs)
	b.put(t, b.set.FlowTable(), 1, 6, maps.FlowStack, established, nil)
	expect("after a restart", 6)
}

func TestRunEnds(t *testing.T) {
	b := newBench(t, 1024)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := b.sweeper.Run(ctx); err != nil {
		t.Error(err)
	}
	if b.sweeper.epoch < 2 {
		t.Errorf("%d sweeps in a second", b.sweeper.epoch)
	}
}

// fillSome makes a table of many flows, of which every tenth is idle for too long.
func (b *bench) fillSome(t testing.TB, flows int) {
	t.Helper()
	for n := range flows {
		idle := 0
		if n%10 == 0 {
			idle = 1001
		}
		b.put(t, b.set.FlowTable(), n, 6, maps.FlowForward, &half{maps.FlowEstablished, idle}, &half{maps.FlowEstablished, idle})
	}
}

// All of a large table is swept, in pieces.
func TestALargeTableIsSweptInPieces(t *testing.T) {
	b := newBench(t, 65536)
	const flows = 30000
	b.once(t) // the programs are told the timeouts
	b.fillSome(t, flows)
	done, err := walk(context.Background(), b.sweeper.options.Programs.SweepFlowsIPv4, b.set.FlowsIPv4)
	if err != nil {
		t.Fatal(err)
	}
	if done.pieces < 2*flows*9/10/512 {
		t.Errorf("%d pieces for %d elements", done.pieces, 2*flows)
	}
	b.once(t)
	left := 0
	if err := b.set.FlowTable().Each(func(maps.FlowKey, maps.Flow) bool { left++; return true }); err != nil {
		t.Fatal(err)
	}
	if want := 2 * flows * 9 / 10; left != want {
		t.Errorf("%d halves are left, want %d", left, want)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.sweeper.Once(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a sweep that was called off: %v", err)
	}
}

// TestLoads has counted wrong: after a sweep as many flows are open as live and are not being closed, and what has been
// born since counts.
func TestLoads(t *testing.T) {
	b := newBench(t, 1024)
	put := func(n int, table maps.FlowTable, state maps.FlowState, idle int) {
		b.put(t, table, n, 6, maps.FlowStack, &half{state, idle}, &half{state, idle})
	}
	for n := range 5 {
		put(n, b.set.FlowTable(), maps.FlowEstablished, 1)
	}
	put(5, b.set.FlowTable(), maps.FlowClosing, 1)
	put(6, b.set.FlowTable(), maps.FlowEstablished, 5000) // swept
	put(7, b.set.EmbryoTable(), maps.FlowUnanswered, 1)
	const index = uint32(7)
	load := func() (is maps.BackendLoad) {
		if err := b.set.BackendLoads.Lookup(index, &is); err != nil {
			t.Fatal(err)
		}
		return is
	}
	wrong := maps.BackendLoad{Flows: 1234, Correction: -7, Counted: 99, Sockets: 2}
	if err := b.set.BackendLoads.Put(index, &wrong); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.sweeper.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		if is := load(); is.Open() != 6+2 || is.Flows != wrong.Flows {
			t.Errorf("open are %d: %+v, want 8", is.Open(), is)
		}
	}
	is := load()
	is.Flows += 3
	if err := b.set.BackendLoads.Put(index, &is); err != nil {
		t.Fatal(err)
	}
	if is := load(); is.Open() != 6+2+3 {
		t.Errorf("with three more, open are %d", is.Open())
	}
}
