package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	weirmaps "github.com/weir-lb/weir/maps"
)

// sight is what the kernel shows of a device: the ids of programs and links there.
type sight struct {
	TCX     map[string][]string // "program 12, link 3", by side
	Filters map[string][]string // "weir/pod_egress: program 12, handle 1"
	XDP     uint32              // program
}

// see reads what is attached to a device, without the code under test.
func see(t *testing.T, name string) sight {
	t.Helper()
	device := linkNamed(t, name)
	found := sight{TCX: map[string][]string{}, Filters: map[string][]string{}}
	for _, s := range []side{ingressSide(), egressSide()} {
		if haveTCX() {
			result, err := link.QueryPrograms(link.QueryOptions{Target: device.Attrs().Index, Attach: s.attach})
			if err != nil {
				t.Fatal(err)
			}
			for _, program := range result.Programs {
				id, _ := program.LinkID()
				found.TCX[s.name] = append(found.TCX[s.name], fmt.Sprintf("program %d, link %d", program.ID, id))
			}
		}
		filters, err := netlink.FilterList(device, s.parent)
		if err != nil {
			t.Fatal(err)
		}
		for _, filter := range filters {
			bpf := filter.(*netlink.BpfFilter)
			found.Filters[s.name] = append(found.Filters[s.name], fmt.Sprintf("%s: program %d, handle %x", bpf.Name, bpf.Id, bpf.Handle))
		}
	}
	if xdp := device.Attrs().Xdp; xdp != nil {
		found.XDP = xdp.ProgId
	}
	return found
}

// hows are the ways of attaching programs for tc.
var hows = []struct {
	how    How
	forced bool
}{{HowTCX, false}, {HowClsact, true}}

// onEachHow runs a test with each of them, in a network namespace and a bpffs of its own.
func onEachHow(t *testing.T, test func(t *testing.T, pins string, options AttachOptions, how How)) {
	t.Helper()
	for _, h := range hows {
		t.Run(string(h.how), func(t *testing.T) {
			if h.how == HowTCX && !haveTCX() {
				t.Skip("this kernel has no tcx")
			}
			enterNamespace(t)
			test(t, filepath.Join(mountBPFFS(t), "weir"), AttachOptions{Clsact: h.forced}, h.how)
		})
	}
}

// nodeDevice makes a device of the node edge.
func nodeDevice(t *testing.T, name string) Device {
	t.Helper()
	device := addVeth(t, name)
	device.Edge = weirmaps.EdgeNode
	return device
}

// TestAttach reports what it has attached, and does nothing the next time.
func TestAttach(t *testing.T) {
	onEachHow(t, func(t *testing.T, pins string, options AttachOptions, how How) {
		i := openInstance(t, pins, testConstants, options)
		for _, device := range []Device{addVeth(t, "pod0"), nodeDevice(t, "eth0")} {
			ingress, egress := programsOf(device.Edge)
			want := Attachment{
				Device: device.Name, Ifindex: device.Index, Edge: device.Edge,
				Hooks: []Hook{{Program: egress, How: how}, {Program: ingress, How: how}},
			}
			if diff := gocmp.Diff(want, i.mustAttach(t, device)); diff != "" {
				t.Errorf("attachment (-want +got):\n%s", diff)
			}
			if !i.Known(device.Index) {
				t.Errorf("%s is not known", device.Name)
			}
		}
		if got, want := i.Changes(), (Changes{Attached: 4}); got != want {
			t.Errorf("changes %+v, want %+v", got, want)
		}
		if got := i.Attachments(); len(got) != 2 || got[0].Device != "pod0" || got[1].Device != "eth0" {
			t.Errorf("attachments %+v", got)
		}
	})
}

// TestAttachChangesEdge replaces the programs of one edge by those of another, and takes all off at last.
func TestAttachChangesEdge(t *testing.T) {
	onEachHow(t, func(t *testing.T, pins string, options AttachOptions, how How) {
		i := openInstance(t, pins, testConstants, options)
		device := addVeth(t, "pod0")
		i.mustAttach(t, device)
		device.Edge = weirmaps.EdgeNode
		i.mustAttach(t, device)
		if got, want := programsOn(t, "pod0"), []string{"node_egress", "node_ingress"}; !slices.Equal(got, want) {
			t.Errorf("programs %q, want %q", got, want)
		}
		device.Edge = weirmaps.EdgeNone
		i.mustAttach(t, device)
		if got := programsOn(t, "pod0"); len(got) > 0 {
			t.Errorf("programs %q, want none", got)
		}
		if pinned := pinNames(t, pins, linksDir); len(pinned) > 0 || i.Known(device.Index) {
			t.Errorf("pinned %q", pinned)
		}
	})
}

// programsOn names the programs for tc that are on a device.
func programsOn(t *testing.T, name string) []string {
	t.Helper()
	var names []string
	seen := see(t, name)
	for _, programs := range []map[string][]string{seen.TCX, seen.Filters} {
		for _, side := range programs {
			for _, program := range side {
				var id int
				if _, err := fmt.Sscanf(program[strings.Index(program, "program "):], "program %d", &id); err != nil {
					t.Fatal(err)
				}
				names = append(names, nameOfProgram(ebpf.ProgramID(id)))
			}
		}
	}
	slices.Sort(names)
	return names
}

// TestGoneDevice unpins the links of a device that is gone, and is not misled by another with its index.
func TestGoneDevice(t *testing.T) {
	onEachHow(t, func(t *testing.T, pins string, options AttachOptions, _ How) {
		i := openInstance(t, pins, testConstants, options)
		device := addVeth(t, "pod0")
		i.mustAttach(t, device)
		if err := netlink.LinkDel(linkNamed(t, "pod0")); err != nil {
			t.Fatal(err)
		}
		if i.Known(device.Index) {
			t.Error("a device that is gone is known")
		}

		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = "pod1", device.Index
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "pod1p"}); err != nil {
			t.Fatal(err)
		}
		if i.Known(device.Index) {
			t.Error("a new device is known by the index of one that is gone")
		}
		device.Name = "pod1"
		i.mustAttach(t, device)
		if got, want := programsOn(t, "pod1"), []string{"pod_egress", "pod_ingress"}; !slices.Equal(got, want) {
			t.Errorf("programs %q, want %q", got, want)
		}
		if got, want := i.Changes(), (Changes{Attached: 4}); got != want {
			t.Errorf("changes %+v, want %+v", got, want)
		}

		if err := netlink.LinkDel(linkNamed(t, "pod1")); err != nil {
			t.Fatal(err)
		}
		if err := i.Retain(nil); err != nil {
			t.Fatal(err)
		}
		if left := append(pinNames(t, pins, linksDir), pinNames(t, pins, qdiscsDir)...); len(left) > 0 || len(i.Attachments()) > 0 {
			t.Errorf("left pinned %q, reported %v", left, i.Attachments())
		}
	})
}

// TestDetach takes programs off, of a device that is there and of one that is not.
func TestDetach(t *testing.T) {
	onEachHow(t, func(t *testing.T, pins string, options AttachOptions, _ How) {
		i := openInstance(t, pins, testConstants, options)
		there, gone := addVeth(t, "pod0"), addVeth(t, "pod1")
		i.mustAttach(t, there)
		i.mustAttach(t, gone)
		if err := netlink.LinkDel(linkNamed(t, "pod1")); err != nil {
			t.Fatal(err)
		}
		for _, device := range []Device{there, gone, gone} {
			if err := i.Detach(device.Index); err != nil {
				t.Error(err)
			}
		}
		if got := programsOn(t, "pod0"); len(got) > 0 || hasClsact(t, "pod0") {
			t.Errorf("left on the device: %q", got)
		}
		if left := append(pinNames(t, pins, linksDir), pinNames(t, pins, qdiscsDir)...); len(left) > 0 {
			t.Errorf("left pinned: %q", left)
		}
	})
}

// TestFailure reports an edge that cannot be had, and leaves no side of it behind.
func TestFailure(t *testing.T) {
	enterNamespace(t)
	i := openInstance(t, filepath.Join(mountBPFFS(t), "weir"), testConstants, AttachOptions{Clsact: true})
	device := addVeth(t, "pod0")
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: device.Index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0),
	}}
	if err := netlink.QdiscAdd(ingress); err != nil {
		t.Fatal(err)
	}
	attachment, err := i.Attach(device)
	if err == nil || !strings.Contains(err.Error(), "pod0") || !strings.Contains(err.Error(), "qdisc ingress") {
		t.Errorf("error %v, want one that names the device and what is in the way", err)
	}
	if len(attachment.Hooks) > 0 || len(attachment.Reasons) != 1 {
		t.Errorf("attachment %+v", attachment)
	}
	if got := programsOn(t, "pod0"); len(got) > 0 {
		t.Errorf("left on the device: %q", got)
	}

	device.Index, device.Name = 9999, "gone0"
	for _, clsact := range []bool{true, false} {
		i.options.Clsact = clsact
		if _, err := i.Attach(device); !errors.Is(err, unix.ENODEV) {
			t.Errorf("a device that is not there: error %v, want ENODEV", err)
		}
	}
	if left := append(pinNames(t, i.pins, linksDir), pinNames(t, i.pins, qdiscsDir)...); len(left) > 0 {
		t.Errorf("left pinned: %q", left)
	}
}

// TestDown waits with a device of the node edge until it is up, and keeps what is on it when it goes down.
func TestDown(t *testing.T) {
	enterNamespace(t)
	i := openInstance(t, filepath.Join(mountBPFFS(t), "weir"), testConstants, AttachOptions{})
	device := nodeDevice(t, "eth0")
	device.Up = false
	if attachment := i.mustAttach(t, device); len(attachment.Hooks) > 0 || len(attachment.Reasons) != 1 {
		t.Errorf("attachment of a device that is down: %+v", attachment)
	}
	device.Up = true
	i.mustAttach(t, device)
	device.Up = false
	if attachment := i.mustAttach(t, device); len(attachment.Hooks) != 2 {
		t.Errorf("attachment of a device that has gone down: %+v", attachment)
	}
}

// TestForeignQdisc keeps a qdisc that others made, or use by now.
func TestForeignQdisc(t *testing.T) {
	enterNamespace(t)
	tr := newTrace(t)
	i := openInstance(t, filepath.Join(mountBPFFS(t), "weir"), testConstants, AttachOptions{Clsact: true})
	theirs, shared := addVeth(t, "pod0"), addVeth(t, "pod1")
	if err := netlink.QdiscAdd(clsactQdisc(theirs.Index)); err != nil {
		t.Fatal(err)
	}
	i.mustAttach(t, theirs)
	i.mustAttach(t, shared)
	addForeignFilter(t, shared.Index, netlink.HANDLE_MIN_INGRESS, 10, tr.program(t, stampForeign, actUnspec))
	for _, device := range []Device{theirs, shared} {
		if err := i.Detach(device.Index); err != nil {
			t.Fatal(err)
		}
		if !hasClsact(t, device.Name) {
			t.Errorf("the qdisc of others on %s is gone", device.Name)
		}
	}
	if seen := see(t, "pod1").Filters["ingress"]; len(seen) != 1 {
		t.Errorf("filters of others: %q, want one", seen)
	}
}

// TestInterruptedPin is not misled by the pin of an agent that was killed between pinning and renaming.
func TestInterruptedPin(t *testing.T) {
	enterNamespace(t)
	i := openInstance(t, filepath.Join(mountBPFFS(t), "weir"), testConstants, AttachOptions{})
	device := addVeth(t, "pod0")
	i.mustAttach(t, device)
	pin := i.linkPin(device.Index, "pod_egress")
	if err := os.Rename(pin, pin+newPin); err != nil {
		t.Fatal(err)
	}
	if err := i.Retain([]int{device.Index}); err != nil {
		t.Fatal(err)
	}
	i.mustAttach(t, device)
	if got, want := pinNames(t, i.pins, linksDir), []string{
		filepath.Base(pin), filepath.Base(i.linkPin(device.Index, "pod_ingress")),
	}; !slices.Equal(got, want) {
		t.Errorf("pinned %q, want %q", got, want)
	}
	if got, want := programsOn(t, "pod0"), []string{"pod_egress", "pod_ingress"}; !slices.Equal(got, want) {
		t.Errorf("programs %q, want %q", got, want)
	}
}
