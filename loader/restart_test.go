package loader

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// TestRestart adopts what is attached: nothing changes, not even an id. Names may change meanwhile.
func TestRestart(t *testing.T) {
	onEachHow(t, func(t *testing.T, pins string, options AttachOptions, _ How) {
		options.XDP = XDPNative
		first := openInstance(t, pins, testConstants, options)
		pod, eth := addVeth(t, "pod0"), nodeDevice(t, "eth0")
		first.mustAttach(t, pod)
		first.mustAttach(t, eth)
		before := []sight{see(t, "pod0"), see(t, "eth0")}
		first.close()
		if diff := gocmp.Diff(before, []sight{see(t, "pod0"), see(t, "eth0")}); diff != "" {
			t.Errorf("the end of the agent changed something:\n%s", diff)
		}

		if err := netlink.LinkSetName(linkNamed(t, "pod0"), "renamed"); err != nil {
			t.Fatal(err)
		}
		pod.Name = "renamed"
		second := openInstance(t, pins, testConstants, options)
		if err := second.Retain([]int{pod.Index, eth.Index}); err != nil {
			t.Fatal(err)
		}
		second.mustAttach(t, pod)
		second.mustAttach(t, eth)
		if changes := second.Changes(); changes != (Changes{}) {
			t.Errorf("changes %+v, want none", changes)
		}
		if diff := gocmp.Diff(before, []sight{see(t, "renamed"), see(t, "eth0")}); diff != "" {
			t.Errorf("a restart changed something:\n%s", diff)
		}
	})
}

// TestUpgrade replaces programs in place: no link and no filter goes or comes.
func TestUpgrade(t *testing.T) {
	onEachHow(t, func(t *testing.T, pins string, options AttachOptions, _ How) {
		options.XDP = XDPNative
		first := openInstance(t, pins, testConstants, options)
		eth := nodeDevice(t, "eth0")
		first.mustAttach(t, eth)
		before, linksBefore := see(t, "eth0"), linkIDs(t, pins)
		first.close()

		other := testConstants
		other.SNATPortMin++
		second := openInstance(t, pins, other, options)
		second.mustAttach(t, eth)
		if got, want := second.Changes(), (Changes{Updated: 3}); got != want {
			t.Errorf("changes %+v, want %+v", got, want)
		}
		after := see(t, "eth0")
		if after.XDP == before.XDP || gocmp.Equal(before.TCX, after.TCX) && gocmp.Equal(before.Filters, after.Filters) {
			t.Errorf("the programs are the same: before %+v, after %+v", before, after)
		}
		if diff := gocmp.Diff(linksBefore, linkIDs(t, pins)); diff != "" {
			t.Errorf("links (-before +after):\n%s", diff)
		}
		if diff := gocmp.Diff(withoutPrograms(before), withoutPrograms(after)); diff != "" {
			t.Errorf("places (-before +after):\n%s", diff)
		}
	})
}

// linkIDs returns the ids of the pinned links, by pin.
func linkIDs(t *testing.T, pins string) map[string]link.ID {
	t.Helper()
	ids := map[string]link.ID{}
	for _, name := range pinNames(t, pins, linksDir) {
		pinned, err := openLink(filepath.Join(pins, linksDir, name))
		if err != nil || pinned == nil {
			t.Fatalf("open %s: %v", name, err)
		}
		ids[name] = pinned.id
		pinned.Close()
	}
	return ids
}

// withoutPrograms leaves of what is seen the links, the names and handles of filters, and their order.
func withoutPrograms(s sight) sight {
	strip := func(sides map[string][]string) map[string][]string {
		stripped := map[string][]string{}
		for side, programs := range sides {
			for _, program := range programs {
				before, after, _ := strings.Cut(program, "program ")
				_, after, _ = strings.Cut(after, ",")
				stripped[side] = append(stripped[side], before+after)
			}
		}
		return stripped
	}
	return sight{TCX: strip(s.TCX), Filters: strip(s.Filters)}
}

// TestSwitchHow goes from tcx to filters and back, as an operator's flag says.
func TestSwitchHow(t *testing.T) {
	enterNamespace(t)
	if !haveTCX() {
		t.Skip("this kernel has no tcx")
	}
	pins := filepath.Join(mountBPFFS(t), "weir")
	device := addVeth(t, "pod0")
	for _, h := range []int{0, 1, 0} {
		i := openInstance(t, pins, testConstants, AttachOptions{Clsact: hows[h].forced})
		for _, hook := range i.mustAttach(t, device).Hooks {
			if hook.How != hows[h].how {
				t.Errorf("%s is attached by %s, want %s", hook.Program, hook.How, hows[h].how)
			}
		}
		if got, want := programsOn(t, "pod0"), []string{"pod_egress", "pod_ingress"}; !slices.Equal(got, want) {
			t.Errorf("programs %q, want %q", got, want)
		}
		i.close()
	}
	if seen := see(t, "pod0"); len(seen.Filters) > 0 || hasClsact(t, "pod0") {
		t.Errorf("left of the filters: %+v", seen.Filters)
	}
}

func hasClsact(t *testing.T, name string) bool {
	t.Helper()
	qdiscs, err := netlink.QdiscList(linkNamed(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "clsact" })
}
