package loader

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// TestCleanup leaves no trace: not on the devices, not in the bpffs, not in the kernel. What others have stays.
func TestCleanup(t *testing.T) {
	onEachHow(t, func(t *testing.T, pins string, options AttachOptions, _ How) {
		tr := newTrace(t)
		eth, pod, shared := nodeDevice(t, "eth0"), addVeth(t, "pod0"), addVeth(t, "pod1")
		addForeignFilter(t, shared.Index, netlink.HANDLE_MIN_EGRESS, 10, tr.program(t, stampForeign, actUnspec))
		before := listing(t)

		options.XDP = XDPNative
		i := openInstance(t, pins, testConstants, options)
		for _, device := range []Device{eth, pod, shared} {
			i.mustAttach(t, device)
		}
		programs, maps := programIDs(t, i.programs), mapIDs(t, i)
		i.close()
		if gocmp.Equal(before, listing(t)) {
			t.Fatal("nothing is attached: cleaning up proves nothing")
		}

		removed, err := Cleanup(pins)
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"node_xdp from eth0", "node_ingress from eth0", "pod_egress from pod0", "pod_egress from pod1", "pinned maps and programs"} {
			if !strings.Contains(strings.Join(removed, "\n"), what) {
				t.Errorf("it does not say that it removed %s: %q", what, removed)
			}
		}
		if diff := gocmp.Diff(before, listing(t)); diff != "" {
			t.Errorf("left on the devices (-before +after):\n%s", diff)
		}
		if _, err := os.Stat(pins); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the directory of pins is still there: %v", err)
		}
		eventually(t, func() error { return stillLoaded(programs, maps) })

		if removed, err := Cleanup(pins); err != nil || len(removed) > 0 {
			t.Errorf("the second time it removed %q, error %v", removed, err)
		}
	})
}

// listing is what tc and ip print of all devices.
func listing(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, device := range links {
		name := device.Attrs().Name
		for _, command := range [][]string{
			{"tc", "qdisc", "show", "dev", name},
			{"tc", "filter", "show", "dev", name, "ingress"},
			{"tc", "filter", "show", "dev", name, "egress"},
			{"ip", "-o", "link", "show", "dev", name},
		} {
			output, err := exec.Command(command[0], command[1:]...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %v: %s", command, err, output)
			}
			text.Write(output)
		}
		fmt.Fprintf(&text, "%s: %v\n", name, see(t, name).TCX)
	}
	return text.String()
}

func mapIDs(t *testing.T, i *instance) []ebpf.MapID {
	t.Helper()
	var ids []ebpf.MapID
	for name, m := range i.set.Replacements() {
		info, err := m.Info()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		id, _ := info.ID()
		ids = append(ids, id)
	}
	return ids
}

// stillLoaded names the programs and maps that the kernel still has.
func stillLoaded(programs map[string]ebpf.ProgramID, maps []ebpf.MapID) error {
	for name, id := range programs {
		if program, err := ebpf.NewProgramFromID(id); err == nil {
			program.Close()
			return fmt.Errorf("the kernel still has the program %s", name)
		}
	}
	for _, id := range maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			return fmt.Errorf("the kernel still has the map %s", filepath.Base(m.String()))
		}
	}
	return nil
}
