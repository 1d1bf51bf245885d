package devices

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/loader"
)

// TestAttachesAtOnce measures how long a new pod's device is without its programs, with the real attacher.
func TestAttachesAtOnce(t *testing.T) {
	w, set := newWorld(t), newSet(t)
	if _, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress}); err != nil {
		t.Skip("this kernel has no tcx")
	}
	pins := t.TempDir()
	if err := unix.Mount("bpf", pins, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(pins, unix.MNT_DETACH) })
	programs, err := loader.Load(set, loader.Constants{SNATPortMin: 61000, SNATPortMax: 65535, JiffiesPerSecond: 250})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { programs.Close() })
	attacher, err := loader.NewAttacher(programs, set, loader.AttachOptions{
		Pins: filepath.Join(pins, "weir"), XDP: loader.XDPOff, Features: loader.Features{TCX: true}, Log: zapFor(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { attacher.Close() })
	w.run(Options{Set: set, Attacher: attacher})

	var took []time.Duration
	const single, burst = 20, 50
	for n := range single {
		pod := w.newPod()
		start := time.Now()
		if err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: named(fmt.Sprintf("veth%d", n)), PeerName: "eth0", PeerNamespace: netlink.NsFd(pod),
		}); err != nil {
			t.Fatal(err)
		}
		index := w.link(fmt.Sprintf("veth%d", n)).Attrs().Index
		eventually(t, func() error { return hasPrograms(index) })
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("from the device's creation to its programs: median %v, longest %v", took[len(took)/2], took[len(took)-1])

	start := time.Now()
	for n := range burst {
		w.veth(fmt.Sprintf("burst%d", n), w.newPod())
	}
	made := time.Since(start)
	for n := range burst {
		index := w.link(fmt.Sprintf("burst%d", n)).Attrs().Index
		eventually(t, func() error { return hasPrograms(index) })
	}
	t.Logf("%d pods at once: made in %v, served after %v", burst, made, time.Since(start))
	eventually(t, func() error { // a program runs a moment before the call that attaches it returns
		if changes := attacher.Changes(); changes != (loader.Changes{Attached: 2 * (single + burst)}) {
			return fmt.Errorf("changes %+v, want two programs attached to each device and nothing else", changes)
		}
		return nil
	})
}

// hasPrograms tells whether both sides of a device have a tcx program.
func hasPrograms(index int) error {
	for _, attach := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		result, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: attach})
		if err != nil {
			return err
		}
		if len(result.Programs) == 0 {
			return errors.New("a side of the device has no program")
		}
	}
	return nil
}
