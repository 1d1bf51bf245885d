package apply

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/loader"
	"github.com/weir-lb/weir/maps"
)

const (
	hammerServices = 4 // each has the VIP of its number; the others go from one to another
	hammerVIPs     = 8
)

// allowed is where packets to a VIP may go during some time. Every address is a backend only once.
type allowed struct {
	inside, outside map[netip.AddrPort]bool
	nowhere         bool
}

func (a *allowed) add(other *allowed) *allowed {
	both := &allowed{map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}, a.nowhere || other.nowhere}
	for _, from := range []*allowed{a, other} {
		for address := range from.inside {
			both.inside[address] = true
		}
		for address := range from.outside {
			both.outside[address] = true
		}
	}
	return both
}

// timeline is what a VIP's packets were allowed, one after the other.
type timeline struct {
	mu     sync.Mutex
	states []*allowed
}

func (l *timeline) push(state *allowed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states = append(l.states, state)
}

// now returns the position of what is allowed now.
func (l *timeline) now() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.states) - 1
}

// since returns what has been allowed from a position on.
func (l *timeline) since(position int) []*allowed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.states[position:]
}

// hammer replaces services as fast as it can.
type hammer struct {
	*rand.Rand
	t        *testing.T
	set      *maps.Set
	programs *loader.Programs
	applier  *Applier
	services map[compile.ID]compile.Service
	owner    [hammerVIPs]int // the service that has the VIP; negative: none
	lines    [hammerVIPs]timeline
	states   [hammerVIPs]*allowed
	next     uint32 // the next backend's address
	epoch    uint32
	restarts int
}

func newHammer(t *testing.T) *hammer {
	set := newSet(t, maps.Sizes{
		Services: 8, Frontends: 8, Backends: 256, SlotBlocks: 256, Flows: 1024, Embryos: 65536, Devices: 4,
	})
	programs, err := loader.Load(set, loader.Constants{SNATPortMin: 61000, SNATPortMax: 65535, JiffiesPerSecond: 100})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { programs.Close() })
	// Test runs arrive by the loopback device, whose MAC is zero.
	if err := set.Devices.Put(uint32(1), &maps.Device{Edge: maps.EdgePod, EdgeId: 1}); err != nil {
		t.Fatal(err)
	}
	h := &hammer{
		Rand: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)), t: t, set: set, programs: programs,
		applier: newApplier(t, set), services: map[compile.ID]compile.Service{}, next: 1,
	}
	for n := range h.owner {
		h.owner[n] = n
		if n >= hammerServices {
			h.owner[n] = -1
		}
	}
	for n := range hammerServices {
		h.renew(n)
	}
	h.deal()
	mustSync(t, h.applier, h.all()...)
	for n := range h.lines {
		h.states[n] = h.allowedAt(n)
		h.lines[n].push(h.states[n])
	}
	return h
}

func hammerID(n int) compile.ID {
	return compile.ID{Namespace: "default", Name: fmt.Sprintf("s%d", n), Protocol: compile.TCP, Family: compile.IPv4}
}

// fresh returns a local backend that has never been one.
func (h *hammer) fresh() compile.Backend {
	h.next++
	address := netip.AddrFrom4([4]byte{10, byte(h.next >> 16), byte(h.next >> 8), byte(h.next)})
	return compile.Backend{Address: netip.AddrPortFrom(address, 8080), Local: true}
}

// renew gives a service other backends.
func (h *hammer) renew(n int) {
	want := compile.Service{ID: hammerID(n), OutsideAlgorithm: maps.AlgorithmMaglev}
	for range 1 + h.IntN(3) {
		want.Inside = append(want.Inside, h.fresh())
	}
	for range 1 + h.IntN(3) {
		want.Outside = append(want.Outside, h.fresh())
	}
	h.services[want.ID] = want
}

// deal gives the services their frontends.
func (h *hammer) deal() {
	for id, want := range h.services {
		want.Frontends = nil
		for n, owner := range h.owner {
			if owner >= 0 && hammerID(owner) == id {
				want.Frontends = append(want.Frontends, vip(n))
			}
		}
		h.services[id] = want
	}
}

func (h *hammer) all() []compile.Service {
	var all []compile.Service
	for _, want := range h.services {
		all = append(all, want)
	}
	return all
}

// allowedAt returns where packets to a VIP shall go.
func (h *hammer) allowedAt(n int) *allowed {
	if h.owner[n] < 0 {
		return &allowed{nowhere: true}
	}
	want := h.services[hammerID(h.owner[n])]
	state := &allowed{inside: map[netip.AddrPort]bool{}, outside: map[netip.AddrPort]bool{}}
	for _, b := range want.Inside {
		state.inside[b.Address] = true
	}
	for _, b := range want.Outside {
		state.outside[b.Address] = true
	}
	return state
}

// strike makes one change.
func (h *hammer) strike() error {
	if err := h.makeRoom(); err != nil {
		return err
	}
	for range 1 + h.IntN(2) {
		h.renew(h.IntN(hammerServices))
	}
	if h.IntN(3) == 0 {
		h.owner[hammerServices+h.IntN(hammerVIPs-hammerServices)] = h.IntN(hammerServices+1) - 1
	}
	h.deal()
	for n := range h.lines {
		h.lines[n].push(h.states[n].add(h.allowedAt(n)))
	}
	if err := h.write(); err != nil {
		return err
	}
	for n := range h.lines {
		h.states[n] = h.allowedAt(n)
		h.lines[n].push(h.states[n])
	}
	return nil
}

// write brings the change to the maps. Sometimes it is a new agent that does.
func (h *hammer) write() (err error) {
	var problems []compile.Problem
	if h.IntN(500) == 0 {
		h.restarts++
		if h.applier, err = New(h.set, h.applier.log); err != nil {
			return err
		}
		problems, err = h.applier.Sync(h.all())
	} else {
		problems, err = h.applier.Apply(h.all(), nil)
	}
	if len(problems) > 0 {
		return fmt.Errorf("no room: %v", problems)
	}
	return err
}

// makeRoom sweeps until there are backend indices enough for one more change.
func (h *hammer) makeRoom() error {
	for h.applier.state.backendIndices.room() < 16 {
		if err := h.sweep(); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes all flows and gives back what they named.
func (h *hammer) sweep() error {
	sweep, err := h.applier.BeginSweep()
	if err != nil {
		return err
	}
	h.epoch++
	if err := h.set.SweepConfig.Put(uint32(0), &maps.SweepSettings{Epoch: h.epoch}); err != nil {
		return err
	}
	err = errors.Join(walk(h.programs.SweepEmbryos, h.set.Embryos), walk(h.programs.SweepFlows, h.set.Flows))
	if err != nil {
		return err
	}
	return h.applier.EndSweep(sweep, h.epoch)
}

func walk(program *ebpf.Program, table *ebpf.Map) error {
	iterator, err := link.AttachIter(link.IterOptions{Program: program, Map: table})
	if err != nil {
		return err
	}
	defer iterator.Close()
	elements, err := iterator.Open()
	if err != nil {
		return err
	}
	defer elements.Close()
	_, err = io.Copy(io.Discard, elements)
	return err
}

// syn returns the nth client's first packet to a VIP.
func syn(n uint32, to netip.AddrPort) []byte {
	packet := make([]byte, 14+20+20)
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

// send runs a packet through a program, and returns where it goes.
func send(program *ebpf.Program, packet []byte) (netip.AddrPort, uint32, error) {
	options := ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+64)}
	verdict, err := program.Run(&options)
	if err != nil {
		return netip.AddrPort{}, 0, err
	}
	out := options.DataOut
	address, _ := netip.AddrFromSlice(out[30:34])
	return netip.AddrPortFrom(address, binary.BigEndian.Uint16(out[36:])), verdict, nil
}

// edge is a program that packets are sent through.
type edge struct {
	name    string
	program *ebpf.Program
	pass    uint32 // its verdict for what goes on up the stack
	allowed func(*allowed) map[netip.AddrPort]bool
}

// shoot sends a packet and checks that its VIP had that backend, at some moment between sending and arrival.
func (h *hammer) shoot(e edge, n int, client uint32) (served bool) {
	from := h.lines[n].now()
	to, verdict, err := send(e.program, syn(client, vip(n).Address))
	if err != nil {
		h.t.Error(err)
		return false
	}
	for _, state := range h.lines[n].since(from) {
		if verdict == e.pass && e.allowed(state)[to] {
			return true
		}
		if verdict == e.pass && state.nowhere && to == vip(n).Address {
			return false
		}
	}
	h.t.Errorf("%s: a packet to %s went to %s, verdict %d", e.name, vip(n).Address, to, verdict)
	return false
}

// One goroutine replaces services, reuses records, slots and backend indices, and moves frontends, as fast as it can;
// another sends packets. No packet goes to a backend that its frontend did not have at that time, and none is lost.
func TestHammer(t *testing.T) {
	h := newHammer(t)
	edges := []edge{
		{"pod_ingress", h.programs.PodIngress, 0xffffffff, func(a *allowed) map[netip.AddrPort]bool { return a.inside }},
		{"node_xdp", h.programs.NodeXDP, 2, func(a *allowed) map[netip.AddrPort]bool { return a.outside }},
	}
	duration := 5 * time.Second
	if testing.Short() {
		duration = time.Second
	}
	deadline := time.Now().Add(duration)
	strikes, packets, served := 0, uint32(0), 0
	var shots sync.WaitGroup
	shots.Go(func() {
		random := rand.New(rand.NewPCG(1, 2))
		for ; time.Now().Before(deadline) && !t.Failed(); packets++ {
			if h.shoot(edges[random.IntN(len(edges))], random.IntN(hammerVIPs), packets) {
				served++
			}
		}
	})
	for ; time.Now().Before(deadline) && !t.Failed(); strikes++ {
		if err := h.strike(); err != nil {
			t.Error(err)
		}
	}
	shots.Wait()
	t.Logf("%d changes by %d agents, %d sweeps, %d backends at %d indices, %d packets, %d of them to a backend",
		strikes, h.restarts+1, h.epoch, h.next, h.set.Backends.MaxEntries(), packets, served)
	if strikes < 100 || served < 1000 || h.next < 2*h.set.Backends.MaxEntries() {
		t.Error("that is too little to prove anything")
	}
}

// seeker returns a program that looks a frontend up again and again, and returns how often it was not there.
func seeker(t *testing.T, set *maps.Set, key maps.FrontendKey, lookups int32) *ebpf.Program {
	t.Helper()
	keys, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: set.Frontends.KeySize(), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	if err := keys.Put(uint32(0), &key); err != nil {
		t.Fatal(err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, keys.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.Mov.Imm(asm.R7, 0), // missed
			asm.JEq.Imm(asm.R0, 0, "end"),
			asm.Mov.Reg(asm.R8, asm.R0), // the key
			asm.Mov.Imm(asm.R6, lookups),
			asm.LoadMapPtr(asm.R1, set.Frontends.FD()).WithSymbol("again"),
			asm.Mov.Reg(asm.R2, asm.R8),
			asm.FnMapLookupElem.Call(),
			asm.JNE.Imm(asm.R0, 0, "found"),
			asm.Add.Imm(asm.R7, 1),
			asm.Sub.Imm(asm.R6, 1).WithSymbol("found"),
			asm.JNE.Imm(asm.R6, 0, "again"),
			asm.Mov.Reg(asm.R0, asm.R7).WithSymbol("end"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// A frontend that is replaced is there all the time. (A hash map's update, but for one in place, lets one lookup
// in some 100,000 miss it here.)
func TestAFrontendThatIsReplacedIsNeverMissing(t *testing.T) {
	sizes := smallSizes()
	sizes.Frontends = 8 // in as many buckets: most have company
	set := newSet(t, sizes)
	write := &kernelWriter{}
	replace := func(generation uint32) {
		for n := range 8 {
			if err := write.lead(set.Frontends, vipKey(n), vipKey(n).Seal(maps.FrontendClusterIP, 1, generation)); err != nil {
				t.Error(err)
			}
		}
	}
	replace(0)
	const lookups = 2000
	var seekers []*ebpf.Program
	for n := range 8 {
		seekers = append(seekers, seeker(t, set, vipKey(n), lookups))
	}
	deadline := time.Now().Add(time.Second)
	var writing sync.WaitGroup
	writing.Go(func() {
		for generation := uint32(1); time.Now().Before(deadline); generation++ {
			replace(generation)
		}
	})
	sought, missed := 0, uint32(0)
	for time.Now().Before(deadline) {
		for _, program := range seekers {
			misses, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
			if err != nil {
				t.Fatal(err)
			}
			sought += lookups
			missed += misses
		}
	}
	writing.Wait()
	t.Logf("%d lookups during %d writes", sought, write.writes.Load())
	if missed > 0 {
		t.Errorf("%d of them found no frontend", missed)
	}
}
