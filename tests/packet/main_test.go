package packet

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

func TestMain(m *testing.M) {
	if err := Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	debug.SetGCPercent(400) // a million packets leave little behind, and that often
	os.Exit(m.Run())
}

// theNode and worlds are made once: building and loading take longer than most tests.
var (
	theNode = sync.OnceValues(func() (*Node, error) { return NewSite().Build() })
	worlds  worldCache
)

// worldCache keeps a world for each settings.
type worldCache struct {
	mu     sync.Mutex
	worlds map[Settings]*World
}

// get returns the world of the settings, which lives as long as the process.
func (c *worldCache) get(settings Settings) (*World, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if world := c.worlds[settings]; world != nil {
		return world, nil
	}
	node, err := theNode()
	if err != nil {
		return nil, err
	}
	world, err := NewWorld(node, settings)
	if err != nil {
		return nil, err
	}
	if c.worlds == nil {
		c.worlds = make(map[Settings]*World)
	}
	c.worlds[settings] = world
	return world, nil
}

// newWorld makes a world for one test alone.
func newWorld(t testing.TB, settings Settings) *World {
	t.Helper()
	node, err := theNode()
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWorld(node, settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// trial is one test of one program in one family and protocol. The model follows every packet, so that it
// is held against the expectations of the tests, and the programs against both.
type trial struct {
	*testing.T
	*World
	Hosts
	model    *Model
	program  Program
	family   compile.Family
	protocol compile.Protocol
	change   func(f *Frame) // what clients send, if it is not as ever
}

// cases says which trials a test is made of; nil: all of a kind.
type cases struct {
	programs  []Program
	families  []compile.Family
	protocols []compile.Protocol
	settings  *Settings
}

func (c cases) fill() cases {
	if c.programs == nil {
		c.programs = []Program{NodeXDP, NodeIngress}
	}
	if c.families == nil {
		c.families = []compile.Family{compile.IPv4, compile.IPv6}
	}
	if c.protocols == nil {
		c.protocols = []compile.Protocol{compile.TCP, compile.UDP, compile.SCTP}
	}
	if c.settings == nil {
		settings := DefaultSettings()
		c.settings = &settings
	}
	return c
}

// withSockets are the protocols whose sockets the kernel has here, and whose checksums are one's complement sums.
func withSockets() []compile.Protocol { return []compile.Protocol{compile.TCP, compile.UDP} }

// forEach runs a test for every case, each from an empty world.
func forEach(t *testing.T, c cases, test func(tr *trial)) {
	c = c.fill()
	world, err := worlds.get(*c.settings)
	if err != nil {
		t.Fatal(err)
	}
	model, err := NewModel(world, *c.settings)
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range c.programs {
		for _, family := range c.families {
			for _, protocol := range c.protocols {
				t.Run(fmt.Sprintf("%s/%s/%s", program, family, protocol), func(t *testing.T) {
					tr := &trial{
						T: t, World: world, Hosts: NewHosts(), model: model, program: program, family: family, protocol: protocol,
					}
					tr.begin()
					test(tr)
					tr.checkState()
				})
			}
		}
	}
}

// begin makes the world one in which nothing has happened.
func (tr *trial) begin() {
	tr.Helper()
	if err := tr.Reset(); err != nil {
		tr.Fatal(err)
	}
	tr.model.Reset()
	tr.serve()
}

// checkState compares flows and counters with the model's.
func (tr *trial) checkState() {
	tr.Helper()
	if err := tr.model.CheckState(tr.World); err != nil {
		tr.Error(err)
	}
}

// serve makes the services, and no others, the ones of the node.
func (tr *trial) serve(services ...compile.Service) {
	tr.Helper()
	if err := tr.Serve(services...); err != nil {
		tr.Fatal(err)
	}
	tr.model.Serve(services...)
}

const (
	servicePort = 80
	nodePort    = 30080
	targetPort  = 8080
	clientPort  = 40000
)

// service returns a service of every kind of frontend, with these backends.
func (tr *trial) service(name string, backends ...compile.Backend) compile.Service {
	return newService(tr.family, tr.protocol, name, servicePort, backends...)
}

// local and remote return a backend on this node and elsewhere.
func (tr *trial) local(host Pair) compile.Backend {
	return compile.Backend{Address: host.Port(tr.family, targetPort), Local: true}
}

func (tr *trial) remote(host Pair) compile.Backend {
	return compile.Backend{Address: host.Port(tr.family, targetPort)}
}

// at returns an address of the trial's family.
func (tr *trial) at(host Pair, port uint16) netip.AddrPort { return host.Port(tr.family, port) }

// frame returns a client's first packet, as it arrives by a device.
func (tr *trial) frame(device string, from, to netip.AddrPort) Frame {
	f := Frame{
		SourceMAC: gatewayMAC(), DestinationMAC: tr.Device(device).MAC, From: from, To: to,
		Protocol: tr.protocol, TTL: 64, TrafficClass: 4, Payload: []byte("forty-two bytes, and an odd one more"),
	}
	f.TCP = TCPFields{SYN: true, Sequence: 1000, Window: 4096, PSH: true}
	f.SCTP = SCTPFields{Chunk: sctpInit, InitiateTag: clientTag}
	if tr.change != nil {
		tr.change(&f)
	}
	return f
}

// Verification tags of SCTP: of what goes to the client, and to the server.
const (
	clientTag = 0xc11e4700
	serverTag = 0x5e27e200
)

// later returns a packet of an established connection.
func (f Frame) later() Frame {
	f.TCP = TCPFields{ACK: true, PSH: true, Sequence: 1001, Acknowledged: 5001, Window: 4096}
	f.SCTP = SCTPFields{Chunk: sctpData, Tag: serverTag}
	return f
}

// answer returns the packet that answers, as it arrives or leaves with these MACs.
func (f Frame) answer(source, destination net.HardwareAddr) Frame {
	f = f.later()
	f.From, f.To = f.To, f.From
	f.SourceMAC, f.DestinationMAC, f.TTL = source, destination, 61
	f.Payload = []byte("an answer, long enough to go without padding")
	return f
}

// translated returns the packet with other addresses.
func (f Frame) translated(from, to netip.AddrPort) Frame {
	f.From, f.To = from, to
	return f
}

// sent returns the packet as it leaves by a device toward a neighbour.
func (tr *trial) sent(f Frame, device string, neighbour net.HardwareAddr) Frame {
	f.TTL--
	f.SourceMAC, f.DestinationMAC = tr.Device(device).MAC, neighbour
	return f
}

// sentVerdict is what a packet gets that leaves by another device than it came by, or by the same.
func (tr *trial) sentVerdict(sameDevice bool) Verdict {
	if tr.program.XDP() && sameDevice {
		return Transmit
	}
	return Redirect
}

// run runs the trial's program on a packet, which the model follows.
func (tr *trial) run(device string, packet []byte) Result {
	tr.Helper()
	return tr.runProgram(tr.program, device, packet)
}

func (tr *trial) runProgram(program Program, device string, packet []byte) Result {
	tr.Helper()
	result, err := tr.World.Run(program, tr.Device(device), packet)
	if err != nil {
		tr.Fatal(err)
	}
	result.Packet = slices.Clone(result.Packet)
	if err := tr.model.Check(program, tr.Device(device), packet, result); err != nil {
		tr.Fatalf("the model disagrees: %v", err)
	}
	return result
}

// expect runs the trial's program on a packet, and compares verdict and packet.
func (tr *trial) expect(device string, frame Frame, verdict Verdict, want Frame) {
	tr.Helper()
	tr.expectOf(tr.program, device, frame, verdict, want)
}

func (tr *trial) expectOf(program Program, device string, frame Frame, verdict Verdict, want Frame) {
	tr.Helper()
	result := tr.runProgram(program, device, frame.Bytes())
	tr.compare(result, verdict, want.Bytes())
	if err := VerifyChecksums(result.Packet, true); err != nil {
		tr.Error(err)
	}
}

// expectUntouched wants the packet to go on as it is.
func (tr *trial) expectUntouched(device string, packet []byte) {
	tr.Helper()
	tr.compare(tr.run(device, packet), Pass, packet)
}

func (tr *trial) expectDrop(device string, frame Frame) {
	tr.Helper()
	if result := tr.run(device, frame.Bytes()); result.Verdict != Drop {
		tr.Errorf("the verdict is %s, not drop", result.Verdict)
	}
}

func (tr *trial) compare(result Result, verdict Verdict, want []byte) {
	tr.Helper()
	if result.Verdict != verdict {
		tr.Fatalf("the verdict is %s, not %s; the packet is\n%s", result.Verdict, verdict, hex.Dump(result.Packet))
	}
	if !bytes.Equal(result.Packet, want) {
		tr.Fatalf("the packet is\n%sand not\n%s", hex.Dump(result.Packet), hex.Dump(want))
	}
}

// expectCounters compares the counters with the ones given, and all others with 0.
func (tr *trial) expectCounters(want maps.PacketCounters) {
	tr.Helper()
	if tr.program.XDP() { // leaves it to tc
		want.PassMalformed, want.PassFragment, want.PassExtension = 0, 0, 0
		want.PassNotForUs, want.PassForeign, want.PassWithoutFlow = 0, 0, 0
	}
	got, err := tr.Counters()
	if err != nil {
		tr.Fatal(err)
	}
	if got != want {
		tr.Errorf("counters are %+v, not %+v", got, want)
	}
}

// tupleOf returns where a packet comes from and goes to.
func (tr *trial) tupleOf(result Result) tuple {
	tr.Helper()
	p, why := parse(result.Packet)
	if why != understood {
		tr.Fatalf("the packet is not one that can be read:\n%s", hex.Dump(result.Packet))
	}
	return p.tuple
}

// pinToCPU keeps the test on the first CPU.
func pinToCPU(t testing.TB) (release func()) {
	t.Helper()
	return pinToNthCPU(t, 0)
}

func pinToNthCPU(t testing.TB, nth int) (release func()) {
	t.Helper()
	release, err := Pin(nth)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// mapped returns an IPv4 address as the IPv6 address that stands for it.
func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}
