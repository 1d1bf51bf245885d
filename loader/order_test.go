package loader

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	weirmaps "github.com/weir-lb/weir/maps"
)

// Stamps of the programs in TestOrder.
const (
	stampIngress = 1
	stampEgress  = 2
	stampForeign = 9
)

// stampingInstance is an instance whose programs do nothing but stamp.
func stampingInstance(t *testing.T, options AttachOptions, tr trace) *instance {
	t.Helper()
	pins := filepath.Join(mountBPFFS(t), "weir")
	set, err := weirmaps.New(smallSizes)
	if err != nil {
		t.Fatal(err)
	}
	ingress := func() *ebpf.Program { return tr.program(t, stampIngress, actUnspec) }
	egress := func() *ebpf.Program { return tr.program(t, stampEgress, actUnspec) }
	programs := &Programs{PodIngress: ingress(), PodEgress: egress(), NodeIngress: ingress(), NodeEgress: egress()}
	programs.twin = func(name string) (*ebpf.Program, error) {
		if name == "pod_ingress" || name == "node_ingress" {
			return ingress().Clone()
		}
		return egress().Clone()
	}
	i := &instance{Attacher: newAttacher(t, pins, programs, set, options), set: set, programs: programs, pins: pins}
	t.Cleanup(i.close)
	return i
}

// TestOrder puts programs of others on a device: those that are there already, and those that come before or behind
// ours afterwards. Packets meet ours first when they come in, and last when they go out.
func TestOrder(t *testing.T) {
	for _, forced := range []bool{false, true} {
		for _, hook := range []How{HowTCX, HowClsact} {
			for _, when := range []string{"first", "later, ahead", "later, behind"} {
				ours := "tcx where possible"
				if forced {
					ours = "clsact"
				}
				t.Run(fmt.Sprintf("ours by %s/theirs by %s/%s", ours, hook, when), func(t *testing.T) {
					testOrder(t, forced, hook, when)
				})
			}
		}
	}
}

func testOrder(t *testing.T, forced bool, hook How, when string) {
	if forced && hook == HowTCX {
		t.Skip("a kernel has tcx or it has not: nobody else uses it where we do not")
	}
	enterNamespace(t)
	tr := newTrace(t)
	i := stampingInstance(t, AttachOptions{Clsact: forced}, tr)
	device := addVeth(t, "pod0")
	foreign := tr.program(t, stampForeign, actUnspec)
	if when == "first" {
		addForeign(t, device.Index, hook, when, foreign)
		i.mustAttach(t, device)
	} else {
		i.mustAttach(t, device)
		addForeign(t, device.Index, hook, when, foreign)
	}
	attachment := i.mustAttach(t, device)
	if got, want := tr.through(t, "pod0p"), []uint32{stampIngress, stampForeign}; !slices.Equal(got, want) {
		t.Errorf("a packet that comes in meets %v, want %v", got, want)
	}
	if got, want := tr.through(t, "pod0"), []uint32{stampForeign, stampEgress}; !slices.Equal(got, want) {
		t.Errorf("a packet that goes out meets %v, want %v", got, want)
	}
	if len(attachment.Foreign) != 2 {
		t.Errorf("programs of others reported: %q, want two", attachment.Foreign)
	}
	before := i.Changes()
	i.mustAttach(t, device)
	if after := i.Changes(); after != before {
		t.Errorf("looking again changed something: %+v, before %+v", after, before)
	}
}

// addForeign attaches a program of others to both sides of a device.
func addForeign(t *testing.T, ifindex int, hook How, when string, program *ebpf.Program) {
	t.Helper()
	ahead := when == "later, ahead"
	if hook == HowTCX {
		anchor := link.Tail()
		if ahead {
			anchor = link.Head()
		}
		addForeignTCX(t, ifindex, ebpf.AttachTCXIngress, anchor, program)
		addForeignTCX(t, ifindex, ebpf.AttachTCXEgress, anchor, program)
		return
	}
	priority := uint16(0xfff0)
	if ahead {
		priority = 1
	}
	addForeignFilter(t, ifindex, netlink.HANDLE_MIN_INGRESS, priority, program)
	addForeignFilter(t, ifindex, netlink.HANDLE_MIN_EGRESS, priority, program)
}

// TestOrderMovesWithoutGap moves our programs while packets pass: each packet meets ours, at least once.
func TestOrderMovesWithoutGap(t *testing.T) {
	enterNamespace(t)
	tr := newTrace(t)
	i := stampingInstance(t, AttachOptions{}, tr)
	device := addVeth(t, "pod0")
	i.mustAttach(t, device)
	foreign := tr.program(t, stampForeign, actUnspec)
	addForeignTCX(t, device.Index, ebpf.AttachTCXIngress, link.Head(), foreign)

	sampled := 0
	twin := i.programs.twin
	i.programs.twin = func(name string) (*ebpf.Program, error) {
		sampled++
		if stamps := tr.through(t, "pod0p"); !slices.Contains(stamps, stampIngress) {
			t.Errorf("before the move a packet meets %v", stamps)
		}
		return twin(name)
	}
	i.mustAttach(t, device)
	if sampled != 1 || i.Changes().Moved != 1 {
		t.Errorf("moved %d times, want once", i.Changes().Moved)
	}
	if got, want := tr.through(t, "pod0p"), []uint32{stampIngress, stampForeign}; !slices.Equal(got, want) {
		t.Errorf("after the move a packet meets %v, want %v", got, want)
	}
}

// TestOrderGivesUp stops moving when somebody else takes the place again and again.
func TestOrderGivesUp(t *testing.T) {
	enterNamespace(t)
	tr := newTrace(t)
	i := stampingInstance(t, AttachOptions{}, tr)
	device := addVeth(t, "pod0")
	i.mustAttach(t, device)
	for range maxMoves + 3 {
		foreign, err := link.AttachTCX(link.TCXOptions{
			Program: tr.program(t, stampForeign, actUnspec), Attach: ebpf.AttachTCXIngress, Interface: device.Index, Anchor: link.Head(),
		})
		if err != nil {
			t.Fatal(err)
		}
		i.mustAttach(t, device)
		foreign.Close()
	}
	if moved := i.Changes().Moved; moved != maxMoves {
		t.Errorf("moved %d times, want %d", moved, maxMoves)
	}
}

// TestEndedChain finds an egress filter behind which nothing is ever asked: a pod is not served at its edge then, and
// a device of the node edge has ours ahead of it.
func TestEndedChain(t *testing.T) {
	for verdict, ends := range map[int32]bool{0: true, actUnspec: false} {
		for _, forced := range []bool{false, true} {
			t.Run(fmt.Sprintf("verdict %d/clsact forced %t", verdict, forced), func(t *testing.T) {
				testEndedChain(t, verdict, ends, forced)
			})
		}
	}
}

func testEndedChain(t *testing.T, verdict int32, ends, forced bool) {
	enterNamespace(t)
	tr := newTrace(t)
	i := stampingInstance(t, AttachOptions{Clsact: forced}, tr)
	device := addVeth(t, "pod0")
	i.mustAttach(t, device)
	addForeignFilter(t, device.Index, netlink.HANDLE_MIN_EGRESS, 10, tr.program(t, stampForeign, verdict))

	attachment := i.mustAttach(t, device)
	if served := len(attachment.Hooks) > 0; served == ends || ends != (len(attachment.Reasons) == 1) {
		t.Errorf("hooks %v for reasons %q", attachment.Hooks, attachment.Reasons)
	}
	want := []uint32{stampForeign, stampEgress}
	if ends {
		want = want[:1]
	}
	if got := tr.through(t, "pod0"); !slices.Equal(got, want) {
		t.Errorf("a packet that leaves for the pod meets %v, want %v", got, want)
	}

	device.Edge = weirmaps.EdgeNode
	attachment = i.mustAttach(t, device)
	want = []uint32{stampForeign, stampEgress}
	if ends {
		want = []uint32{stampEgress, stampForeign}
	}
	if got := tr.through(t, "pod0"); !slices.Equal(got, want) || len(attachment.Hooks) != 2 {
		t.Errorf("a packet that leaves by the node's edge meets %v, want %v (%+v)", got, want, attachment)
	}
}
