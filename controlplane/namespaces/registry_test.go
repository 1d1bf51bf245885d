package namespaces

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap/zaptest"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/controlplane/compile"
	weirmaps "github.com/weir-lb/weir/maps"
)

// newSet makes maps of the test's own.
func newSet(t *testing.T) *weirmaps.Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces and maps")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	set, err := weirmaps.New(weirmaps.Sizes{Services: 16, Frontends: 16, Backends: 16, SlotBlocks: 16, FlowsIPv4: 16, FlowsIPv6: 16, Embryos: 16, Devices: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return set
}

// newNamed makes a network namespace that nothing but a mount holds, with an address, and returns its cookie.
func newNamed(t *testing.T, number int, address string) (cookie uint64) {
	t.Helper()
	name := fmt.Sprintf("weir-test-%d-%d", os.Getpid(), number)
	onOwnThread(func() {
		handle, err := netns.NewNamed(name)
		if err != nil {
			t.Error(err)
			return
		}
		handle.Close()
		cookie = addDevice(t, address)
	})
	t.Cleanup(func() { netns.DeleteNamed(name) })
	return cookie
}

// addDevice makes a device with an address in the calling thread's namespace, whose cookie it returns.
func addDevice(t *testing.T, address string) uint64 {
	device := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}
	parsed, err := netlink.ParseAddr(address)
	if err == nil {
		err = netlink.LinkAdd(device)
	}
	if err == nil {
		err = netlink.LinkSetUp(device)
	}
	if err == nil {
		err = netlink.AddrAdd(device, parsed)
	}
	if err != nil {
		t.Error(err)
	}
	cookie, err := Cookie()
	if err != nil {
		t.Error(err)
	}
	return cookie
}

func record(t *testing.T, set *weirmaps.Set, cookie uint64) (record weirmaps.Namespace, found bool) {
	t.Helper()
	return record, set.Namespaces.Lookup(cookie, &record) == nil
}

func pod(name, address string, leave bool) compile.Pod {
	p := compile.Pod{Name: "default/" + name, UID: name, LeaveSockets: leave}
	if address != "" {
		p.Addresses = []netip.Addr{netip.MustParseAddr(address)}
	}
	return p
}

// TestLook finds namespaces that a mount holds or a process, with their addresses, and forgets them when they go.
func TestLook(t *testing.T) {
	set := newSet(t)
	r, err := New(Options{Set: set, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, found := record(t, set, r.node); !found {
		t.Error("the node's own namespace is not known from the beginning")
	}
	mounted := newNamed(t, 1, "192.0.2.77/24")
	r.look()
	got, found := record(t, set, mounted)
	if !found || got.Flags != 0 || got.Ipv4.Addr() != netip.MustParseAddr("192.0.2.77") || !got.Ipv6.IsZero() {
		t.Errorf("the mounted namespace is %+v, %v", got, found)
	}
	netns.DeleteNamed(fmt.Sprintf("weir-test-%d-1", os.Getpid()))
	r.look()
	if _, found := record(t, set, mounted); found {
		t.Error("a namespace that has gone is still there")
	}
}

// TestLocalVIPs writes down which ClusterIPs are addresses of a namespace, and forgets them when they are none.
func TestLocalVIPs(t *testing.T) {
	set := newSet(t)
	asked, service := netip.MustParseAddr("192.0.2.53"), types.NamespacedName{Namespace: "kube-system", Name: "dns"}
	taken := true
	r, err := New(Options{Set: set, Log: zaptest.NewLogger(t), ClusterIP: func(address netip.Addr) (types.NamespacedName, bool) {
		return service, taken && address == asked
	}})
	if err != nil {
		t.Fatal(err)
	}
	cookie := newNamed(t, 1, "192.0.2.53/24")
	r.TouchClusterIPs() // before the first look there is nothing to say
	written := func() bool {
		var device uint32
		return set.LocalVIPs.Lookup(&weirmaps.LocalVIP{Cookie: cookie, Address: weirmaps.AddressOf(asked)}, &device) == nil && device > 0
	}
	if r.look(); !written() {
		t.Error("the ClusterIP of a namespace is not in the map")
	}
	taken = false
	if r.TouchClusterIPs(); written() {
		t.Error("an address that is no ClusterIP any more is in the map")
	}
	taken = true
	if r.TouchClusterIPs(); !written() {
		t.Error("an address that has become a ClusterIP is not in the map")
	}
	if len(r.Problems()) > 0 {
		t.Errorf("what another namespace has is no problem of the node's: %v", r.Problems())
	}
	// What has failed stands until the next look.
	r.failed = errors.New("may not be looked at")
	if r.TouchClusterIPs(); len(r.Problems()) != 1 {
		t.Errorf("the last look has failed, and the problems are %v", r.Problems())
	}
	if r.look(); len(r.Problems()) > 0 {
		t.Errorf("the last look has not failed, and the problems are %v", r.Problems())
	}
}

// TestLeave leaves the sockets of pods that ask for it, and those of namespaces that may be such a pod's.
func TestLeave(t *testing.T) {
	set := newSet(t)
	r, err := New(Options{Set: set, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	early := newNamed(t, 1, "192.0.2.11/24")
	expect := func(what string, cookie uint64, left bool) {
		t.Helper()
		got, found := record(t, set, cookie)
		if !found || (got.Flags&weirmaps.NamespaceLeft != 0) != left {
			t.Errorf("%s: %+v, found %v", what, got, found)
		}
	}
	r.look()
	expect("nobody's namespace", early, false)

	r.pods = sortPods([]compile.Pod{pod("mesh", "", true)})
	late := newNamed(t, 2, "192.0.2.12/24")
	r.look()
	expect("one that was there before", early, false)
	expect("one that comes while a pod is awaited", late, true)

	r.pods = sortPods([]compile.Pod{pod("mesh", "192.0.2.12", true), pod("other", "192.0.2.11", false)})
	r.look()
	expect("the pod's", late, true)
	expect("another pod's", early, false)

	r.pods = sortPods([]compile.Pod{pod("mesh", "192.0.2.11", true)})
	r.look()
	expect("the pod's that came to ask for it", early, true)
	expect("one that no pod is awaited for any more", late, false)
	expect("the node's", r.node, false)
}

// TestLeaveCgroup leaves the sockets of a pod in the node's namespace, by its cgroup.
func TestLeaveCgroup(t *testing.T) {
	set := newSet(t)
	root := t.TempDir()
	pods := []compile.Pod{
		{Name: "kube-system/proxy", UID: "5f0c-11", HostNetwork: true, LeaveSockets: true},
		{Name: "kube-system/lost", UID: "77", HostNetwork: true, LeaveSockets: true},
	}
	if err := os.MkdirAll(root+"/kubepods.slice/kubepods-pod5f0c_11.slice/container", 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := New(Options{Set: set, Log: zaptest.NewLogger(t), CgroupRoot: root})
	if err != nil {
		t.Fatal(err)
	}
	r.pods = sortPods(pods)
	r.look()
	if got, _ := record(t, set, r.node); got.Flags != weirmaps.NamespaceCgroups {
		t.Errorf("the node's namespace has flags %d", got.Flags)
	}
	if len(r.records.cgroups) != 1 {
		t.Errorf("cgroups left: %v", r.records.cgroups)
	}
	if problems := r.Problems(); len(problems) != 1 || problems[0].Object != "Pod kube-system/lost" {
		t.Errorf("problems: %v", problems)
	}
}

// TestWhatMayNotBeLookedAt: it is said where that is most of what there is, and not because of a few.
func TestWhatMayNotBeLookedAt(t *testing.T) {
	type path struct {
		process bool
		err     error
	}
	process, mount := path{process: true}, path{}
	hidden, hiddenMount := path{true, fmt.Errorf("look: %w", fs.ErrPermission)}, path{false, fmt.Errorf("look: %w", fs.ErrPermission)}
	barred := path{true, errBarred}
	for _, test := range []struct {
		name  string
		paths []path
		found int // namespaces
		fails bool
	}{
		{"all may", []path{process, process, mount}, 2, false},
		{"few processes may not, of one namespace", []path{process, process, process, hidden, hidden}, 1, false},
		{"the first process may not, nor the many mounts that it has", []path{process, process, hidden, hiddenMount, hiddenMount, hiddenMount, hiddenMount}, 1, false},
		{"most processes may not", []path{process, hidden, hidden}, 1, true},
		{"none but the own may be entered", []path{process, process, process, process, barred, barred}, 3, true},
		{"one may not be entered", []path{process, process, process, barred}, 3, false},
	} {
		var seen looks
		for _, p := range test.paths {
			if seen.count(p.process, p.err) {
				t.Errorf("%s: %v is a failure", test.name, p)
			}
		}
		if err := seen.denied(test.found); (err != nil) != test.fails {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestVisitLeavesNothing looks many times: no file, thread or namespace is left over.
func TestVisitLeavesNothing(t *testing.T) {
	set := newSet(t)
	r, err := New(Options{Set: set, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	newNamed(t, 1, "192.0.2.77/24")
	count := func(dir string) int {
		entries, err := os.ReadDir("/proc/self/" + dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	r.look()
	files, threads := count("fd"), count("task")
	for range 200 {
		r.look()
	}
	if now := count("fd"); now > files {
		t.Errorf("%d files are open, %d were", now, files)
	}
	if now := count("task"); now > threads+10 {
		t.Errorf("there are %d threads, %d were", now, threads)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cookie, err := Cookie(); err != nil || cookie != r.node {
		t.Errorf("this thread is in another namespace: %v", err)
	}
}

// TestRun looks again when devices have come.
func TestRun(t *testing.T) {
	set := newSet(t)
	r, err := New(Options{Set: set, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.SetPods(nil)
	cookie := newNamed(t, 1, "192.0.2.77/24")
	r.Touch()
	deadline := time.Now().Add(8 * time.Second) // sooner than without being told
	for {
		if _, found := record(t, set, cookie); found {
			break
		}
		if time.Now().After(deadline) {
			t.Error("a new namespace is not found")
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
