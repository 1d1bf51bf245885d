package loader

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// smallSizes keep the maps of a test small.
var smallSizes = weirmaps.Sizes{
	Services: 64, Frontends: 64, Backends: 64, SlotBlocks: 64, FlowsIPv4: 64, FlowsIPv6: 64, Embryos: 64, Devices: 64,
}

var testConstants = Constants{SNATPortMin: 61000, SNATPortMax: 65535, JiffiesPerSecond: 250}

// enterNamespace moves the test into a network namespace of its own, which goes with it. Tests in different ones run at
// once: most of their time they wait for the kernel.
func enterNamespace(t *testing.T) {
	t.Helper()
	t.Parallel()
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and with it the namespace
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
}

// mountBPFFS returns a bpffs of the test's own.
func mountBPFFS(t *testing.T) string {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// instance is what an agent opens when it starts.
type instance struct {
	*Attacher
	set      *weirmaps.Set
	programs *Programs
	pins     string
}

// openInstance does what an agent does when it starts, and what the kernel does when it ends.
func openInstance(t *testing.T, pins string, constants Constants, options AttachOptions) *instance {
	t.Helper()
	set, err := weirmaps.Create(pins, smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	programs, err := Adopt(pins, set, constants)
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{Attacher: newAttacher(t, pins, programs, set, options), set: set, programs: programs, pins: pins}
	t.Cleanup(i.close)
	return i
}

// newAttacher makes an attacher without XDP, unless the options say otherwise.
func newAttacher(t *testing.T, pins string, programs *Programs, set *weirmaps.Set, options AttachOptions) *Attacher {
	t.Helper()
	options.Pins, options.Log = pins, zaptest.NewLogger(t)
	options.Features.TCX = haveTCX()
	if options.XDP == "" {
		options.XDP = XDPOff
	}
	attacher, err := NewAttacher(programs, set, options)
	if err != nil {
		t.Fatal(err)
	}
	return attacher
}

// close lets go of all handles, as the end of the process does.
func (i *instance) close() {
	i.Attacher.Close()
	i.programs.Close()
	i.set.Close()
}

// addVeth makes a pair of veths, up, and returns the first.
func addVeth(t *testing.T, name string) Device {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{name, name + "p"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+end+"/disable_ipv6", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(linkNamed(t, end)); err != nil {
			t.Fatal(err)
		}
	}
	return Device{Index: linkNamed(t, name).Attrs().Index, Name: name, Kind: "veth", Edge: weirmaps.EdgePod, Up: true, Ethernet: true}
}

func linkNamed(t *testing.T, name string) netlink.Link {
	t.Helper()
	found, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// attach attaches and expects no error.
func (i *instance) mustAttach(t *testing.T, device Device) Attachment {
	t.Helper()
	attachment, err := i.Attach(device)
	if err != nil {
		t.Fatal(err)
	}
	return attachment
}

// eventually waits for something that the kernel does in its own time.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for range 200 {
		if err = check(); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error(err)
}

// trace is a map into which stamping programs write in which order packets met them.
type trace struct{ m *ebpf.Map }

func newTrace(t *testing.T) trace {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return trace{m}
}

// program returns a tc program that writes its stamp behind the last one, if the packet is one of send's, and returns
// the verdict.
func (tr trace) program(t *testing.T, stamp int32, verdict int32) *ebpf.Program {
	t.Helper()
	lookup := func(label string) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, tr.m.FD()).WithSymbol(label),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
		}
	}
	code := asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 16, asm.Word), // protocol of the packet
		asm.JNE.Imm(asm.R6, stampedProtocolSwapped, "out"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
	}
	code = append(code, lookup("")...)
	code = append(code,
		asm.LoadMem(asm.R7, asm.R0, 0, asm.Word),
		asm.Add.Imm(asm.R7, 1),
		asm.StoreMem(asm.R0, 0, asm.R7, asm.Word),
		asm.StoreMem(asm.RFP, -4, asm.R7, asm.Word),
	)
	code = append(code, lookup("")...)
	code = append(code,
		asm.StoreImm(asm.R0, 0, int64(stamp), asm.Word),
		asm.Mov.Imm(asm.R0, verdict).WithSymbol("out"),
		asm.Return(),
	)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stamp", Type: ebpf.SchedCLS, Instructions: code, License: "GPL"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// The Ethernet protocol of the packets that are traced, as the wire and as a program reads it.
const (
	stampedProtocol        = 0x88b5
	stampedProtocolSwapped = 0xb588
)

// through sends a packet out of a device, and returns the stamps it has got.
func (tr trace) through(t *testing.T, device string) []uint32 {
	t.Helper()
	if err := tr.m.Put(uint32(0), uint32(0)); err != nil {
		t.Fatal(err)
	}
	send(t, device)
	var count uint32
	if err := tr.m.Lookup(uint32(0), &count); err != nil {
		t.Fatal(err)
	}
	stamps := make([]uint32, count)
	for i := range stamps {
		if err := tr.m.Lookup(uint32(i+1), &stamps[i]); err != nil {
			t.Fatal(err)
		}
	}
	return stamps
}

// send sends a frame out of a device.
func send(t *testing.T, device string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	frame := make([]byte, 64)
	copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, stampedProtocol >> 8, stampedProtocol & 0xff})
	to := &unix.SockaddrLinklayer{Ifindex: linkNamed(t, device).Attrs().Index, Protocol: stampedProtocolSwapped, Halen: 6}
	if err := unix.Sendto(fd, frame, 0, to); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond) // the receiving end works in its softirq, on this or another CPU
}

// addForeignTCX attaches a program of somebody else until the test ends.
func addForeignTCX(t *testing.T, ifindex int, attach ebpf.AttachType, anchor link.Anchor, program *ebpf.Program) {
	t.Helper()
	foreign, err := link.AttachTCX(link.TCXOptions{Program: program, Attach: attach, Interface: ifindex, Anchor: anchor})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { foreign.Close() })
}

// addForeignFilter attaches a filter of somebody else.
func addForeignFilter(t *testing.T, ifindex int, parent uint32, priority uint16, program *ebpf.Program) {
	t.Helper()
	if err := netlink.QdiscAdd(clsactQdisc(ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
	err := netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: parent, Handle: 1, Priority: priority, Protocol: unix.ETH_P_ALL},
		Fd:          program.FD(), Name: "somebody", DirectAction: true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pinNames lists what is pinned under a directory of pins.
func pinNames(t *testing.T, pins, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(pins, dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}
