package devices

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/loader"
	weirmaps "github.com/weir-lb/weir/maps"
)

// world is a network namespace that the test is in, with the namespaces of pods.
type world struct {
	t    *testing.T
	here netns.NsHandle
}

// newWorld moves the test into a network namespace of its own, which goes with it.
func newWorld(t *testing.T) *world {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and with it the namespace
	here, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	for _, setting := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+setting+"/accept_dad", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	return &world{t: t, here: here}
}

// newPod makes a network namespace without entering it.
func (w *world) newPod() netns.NsHandle {
	w.t.Helper()
	pod, err := netns.New()
	if err == nil {
		err = netns.Set(w.here)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { pod.Close() })
	return pod
}

// add makes a device, up.
func (w *world) add(link netlink.Link) netlink.Link {
	w.t.Helper()
	if err := netlink.LinkAdd(link); err != nil {
		w.t.Fatalf("add %s: %v", link.Attrs().Name, err)
	}
	return w.up(link.Attrs().Name)
}

func (w *world) up(name string) netlink.Link {
	w.t.Helper()
	link := w.link(name)
	if err := netlink.LinkSetUp(link); err != nil {
		w.t.Fatal(err)
	}
	return link
}

func (w *world) link(name string) netlink.Link {
	w.t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return link
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

// veth makes a pair with its other end in a pod.
func (w *world) veth(name string, pod netns.NsHandle) netlink.Link {
	w.t.Helper()
	return w.add(&netlink.Veth{LinkAttrs: named(name), PeerName: "eth0", PeerNamespace: netlink.NsFd(pod)})
}

func (w *world) remove(name string) {
	w.t.Helper()
	if err := netlink.LinkDel(w.link(name)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) address(device, prefix string) *netlink.Addr {
	w.t.Helper()
	p := netip.MustParsePrefix(prefix)
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD,
	}
}

func (w *world) addAddress(device string, prefixes ...string) {
	w.t.Helper()
	for _, prefix := range prefixes {
		if err := netlink.AddrAdd(w.link(device), w.address(device, prefix)); err != nil {
			w.t.Fatalf("add %s to %s: %v", prefix, device, err)
		}
	}
}

// addFar gives addresses to the other end of a veth, in the namespace of its pod.
func (w *world) addFar(pod netns.NsHandle, prefixes ...string) {
	w.t.Helper()
	far, err := netlink.NewHandleAt(pod)
	if err != nil {
		w.t.Fatal(err)
	}
	defer far.Close()
	end, err := far.LinkByName("eth0")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, prefix := range prefixes {
		if err := far.AddrAdd(end, w.address("eth0", prefix)); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := far.LinkSetUp(end); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) removeAddress(device, prefix string) {
	w.t.Helper()
	if err := netlink.AddrDel(w.link(device), w.address(device, prefix)); err != nil {
		w.t.Fatal(err)
	}
}

// fakeAttacher notes what is asked of it.
type fakeAttacher struct {
	mu       sync.Mutex
	devices  map[int]loader.Device
	attaches int
	fail     map[string]error // by name
}

func newFakeAttacher() *fakeAttacher {
	return &fakeAttacher{devices: map[int]loader.Device{}, fail: map[string]error{}}
}

func (f *fakeAttacher) Attach(d loader.Device) (loader.Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attaches++
	if err := f.fail[d.Name]; err != nil {
		return loader.Attachment{}, err
	}
	f.devices[d.Index] = d
	return loader.Attachment{}, nil
}

func (f *fakeAttacher) Known(ifindex int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, known := f.devices[ifindex]
	return known && d.Edge != weirmaps.EdgeNone
}

func (f *fakeAttacher) Detach(ifindex int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.devices, ifindex)
	return nil
}

func (f *fakeAttacher) Retain(ifindexes []int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for index := range f.devices {
		if !slices.Contains(ifindexes, index) {
			delete(f.devices, index)
		}
	}
	return nil
}

// on returns what was last asked for a device.
func (f *fakeAttacher) on(index int) loader.Device {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.devices[index]
}

func (f *fakeAttacher) setFailure(name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[name] = err
}

func newSet(t *testing.T) *weirmaps.Set {
	t.Helper()
	set, err := weirmaps.New(weirmaps.Sizes{
		Services: 8, Frontends: 8, Backends: 8, SlotBlocks: 8, FlowsIPv4: 8, FlowsIPv6: 8, Embryos: 8, Devices: 1024,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

// running is a manager that runs.
type running struct {
	*Manager
	stop func()
}

// run makes a manager, and runs it until the test ends or stop is called.
func (w *world) run(options Options) *running {
	w.t.Helper()
	options.Log = zaptest.NewLogger(w.t)
	m, err := New(options)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.runManager(m)
}

func (w *world) runManager(m *Manager) *running {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // ends with the goroutine
		if err := netns.Set(w.here); err != nil {
			ended <- err
			return
		}
		ended <- m.Run(ctx)
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("the manager ended: %v", err)
		}
	})
	w.t.Cleanup(stop)
	select {
	case <-m.Ready():
	case <-time.After(5 * time.Second):
		w.t.Fatal("the manager is not ready")
	}
	return &running{Manager: m, stop: stop}
}

// eventually waits until a check is content.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Error(err)
}

// readDevice returns what the map holds of a device.
func readDevice(set *weirmaps.Set, link netlink.Link) (weirmaps.Device, error) {
	device, err := set.Device(uint32(link.Attrs().Index))
	if err != nil {
		return device, fmt.Errorf("%s in the map: %w", link.Attrs().Name, err)
	}
	return device, nil
}

// hasDevice waits until the map holds a device that is as wanted.
func hasDevice(t *testing.T, set *weirmaps.Set, link netlink.Link, check func(weirmaps.Device) bool) {
	t.Helper()
	eventually(t, func() error {
		device, err := readDevice(set, link)
		if err == nil && !check(device) {
			err = fmt.Errorf("%s in the map is %+v", link.Attrs().Name, device)
		}
		return err
	})
}

// nodeAddresses returns what the map node_addrs holds.
func nodeAddresses(t *testing.T, set *weirmaps.Set) []string {
	t.Helper()
	var found []string
	var address weirmaps.Address
	var index uint32
	entries := set.NodeAddrs.Iterate()
	for entries.Next(&address, &index) {
		found = append(found, address.Addr().String())
	}
	slices.Sort(found)
	return found
}

func zapFor(t *testing.T) *zap.Logger { return zaptest.NewLogger(t) }
