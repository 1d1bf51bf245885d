package bench

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/loader"
)

// hook is where a program is run.
type hook string

const (
	xdp hook = "xdp"
	tc  hook = "tc"
)

// pass returns the verdict of a packet that goes on through the stack.
func (h hook) pass() uint32 {
	if h == xdp {
		return 2 // XDP_PASS
	}
	return math.MaxUint32 // TC_ACT_UNSPEC
}

// forward returns the verdict of a packet that goes out again by the device it came by.
func (h hook) forward() uint32 {
	if h == xdp {
		return 3 // XDP_TX
	}
	return 7 // TC_ACT_REDIRECT
}

// harness makes packets and gives them to one program, as bpf/bench/harness.bpf.c says.
type harness struct {
	hook       hook
	flows      uint32
	program    *ebpf.Program
	collection *ebpf.Collection
	frame      []byte
	context    any
}

// newFlows as a number of flows makes each packet one of a new flow.
const newFlows = 0

// xdpContext is struct xdp_md of linux/bpf.h.
type xdpContext struct {
	Data, DataEnd, DataMeta         uint32
	IngressIfindex, RxQueue, Egress uint32
}

// tcContext is the beginning of struct __sk_buff of linux/bpf.h.
type tcContext struct {
	_       [10]uint32
	Ifindex uint32
}

// newHarness returns a harness in front of a program. The packets arrive by the device ifindex and are of that many
// flows.
func newHarness(at hook, program *ebpf.Program, p packets, flows uint32, ifindex int) (*harness, error) {
	h := &harness{hook: at, flows: flows, frame: p.frame()}
	if at == xdp {
		h.context = xdpContext{DataEnd: frameBytes, IngressIfindex: uint32(ifindex)}
	} else {
		h.context = tcContext{Ifindex: uint32(ifindex)}
	}
	if err := h.load(p.kind, program); err != nil {
		return nil, fmt.Errorf("load the harness: %w", err)
	}
	return h, nil
}

func (h *harness) load(k kind, program *ebpf.Program) error {
	spec, err := readObject(loadHarness)
	if err != nil {
		return err
	}
	for name, value := range map[string]any{
		"template": h.frame[:templateBytes],
		"ipv6":     k.Family == compile.IPv6,
		"udp":      k.Protocol == compile.UDP,
		"flows":    h.flows,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	name := "harness_" + string(h.hook)
	for other := range spec.Programs {
		if other != name {
			delete(spec.Programs, other)
		}
	}
	// Filled before the harness is loaded: later, the kernel would patch a running program, which takes long.
	measured, err := ebpf.NewMap(spec.Maps["measured"])
	if err != nil {
		return err
	}
	defer measured.Close()
	if err := measured.Put(uint32(0), program); err != nil {
		return fmt.Errorf("put %s behind the harness: %w", program, err)
	}
	h.collection, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{"measured": measured},
	})
	if err != nil {
		return err
	}
	h.program = h.collection.Programs[name]
	return nil
}

// readObject reads one of the objects of this package, whose programs call ours or stand beside them.
func readObject(read func() (*ebpf.CollectionSpec, error)) (*ebpf.CollectionSpec, error) {
	spec, err := read()
	if err == nil && loader.HaveXDPFrags() {
		loader.TakeXDPFrags(spec)
	}
	return spec, err
}

// close frees the harness, not the program behind it.
func (h *harness) close() { h.collection.Close() }

// loadEmpty loads the program that does nothing, behind which the harness itself is measured.
func loadEmpty(at hook) (*ebpf.Program, error) {
	spec, err := readObject(loadHarness)
	if err != nil {
		return nil, fmt.Errorf("read the harness: %w", err)
	}
	program, err := ebpf.NewProgram(spec.Programs["empty_"+string(at)])
	if err != nil {
		return nil, fmt.Errorf("load the empty program: %w", err)
	}
	return program, nil
}

// outcome is what the last of a run of packets met.
type outcome struct {
	verdict uint32
	frame   []byte  // as it left
	flow    uint32  // of the packet, by number
	seconds float64 // of CPU time, for all packets
}

// errInterrupted says that a signal made the kernel start again.
var errInterrupted = errors.New("interrupted")

// run sends packets through the program. The calling goroutine must be locked to its thread.
func (h *harness) run(count uint32) (outcome, error) {
	first, err := h.nextPacket()
	if err != nil {
		return outcome{}, err
	}
	options := ebpf.RunOptions{Data: h.frame, DataOut: make([]byte, frameBytes+64), Context: h.context, Repeat: count}
	before, err := threadTime()
	if err != nil {
		return outcome{}, err
	}
	verdict, err := h.program.Run(&options)
	if err != nil {
		return outcome{}, fmt.Errorf("run %s: %w", h.program, err)
	}
	after, err := threadTime()
	if err != nil {
		return outcome{}, err
	}
	next, err := h.nextPacket()
	if err != nil {
		return outcome{}, err
	}
	if next-first != count {
		return outcome{}, errInterrupted
	}
	return outcome{verdict: verdict, frame: options.DataOut, flow: h.flowOf(next - 1), seconds: after - before}, nil
}

// nextPacket returns the number of the next packet.
func (h *harness) nextPacket() (uint32, error) {
	var number uint32
	if err := h.collection.Variables["next_packet"].Get(&number); err != nil {
		return 0, fmt.Errorf("read the number of the next packet: %w", err)
	}
	return number, nil
}

// startAt sets the number of the next packet.
func (h *harness) startAt(number uint32) error {
	if err := h.collection.Variables["next_packet"].Set(number); err != nil {
		return fmt.Errorf("set the number of the next packet: %w", err)
	}
	return nil
}

// flowOf is flow_number of harness.bpf.c.
func (h *harness) flowOf(packet uint32) uint32 {
	if h.flows == newFlows {
		return packet
	}
	return uint32(uint64(packet*0x9e3779b1) * uint64(h.flows) >> 32)
}

// threadTime returns the CPU time of the calling thread, in seconds: what others do meanwhile is not in it.
func threadTime() (float64, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		return 0, fmt.Errorf("read the thread's CPU time: %w", err)
	}
	return float64(now.Sec) + float64(now.Nsec)/1e9, nil
}
