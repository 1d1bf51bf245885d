package loader

import (
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/namespaces"
	"github.com/weir-lb/weir/maps"
)

// TestSocketNamespaces serves the sockets of namespaces that are known, and leaves those that are to be left.
func TestSocketNamespaces(t *testing.T) {
	here, err := namespaces.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	edge := newSocketEdge(t, Constants{NodeNetNS: here})
	edge.serve(t, socketService("none", compile.UDP, "10.96.0.2:53"), socketService("node", compile.TCP, "[::]:30080", netip.MustParseAddrPort("[fd00::1]:1")))
	below := filepath.Join(edge.cgroup, "container")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Rmdir(below) })
	id, err := cgroupID(edge.cgroup)
	if err != nil {
		t.Fatal(err)
	}
	refused := int(syscall.ECONNREFUSED)
	expect := func(what string, served bool) {
		t.Helper()
		if got := inCgroup(t, below, "udp", "10.96.0.2:53"); (got.Errno == refused) != served {
			t.Errorf("%s: %+v", what, got)
		}
	}
	put := func(flags uint32) {
		t.Helper()
		if err := edge.set.Namespaces.Update(here, &maps.Namespace{Flags: flags}, ebpf.UpdateLock); err != nil {
			t.Fatal(err)
		}
	}
	expect("a namespace not known", false)
	put(0)
	expect("a known one", true)
	put(maps.NamespaceLeft)
	expect("one that is left", false)
	put(maps.NamespaceCgroups)
	expect("no cgroup is left", true)
	if err := edge.set.LeftCgroups.Put(id, uint32(1)); err != nil {
		t.Fatal(err)
	}
	expect("the cgroup above is left", false)
	if got := inCgroup(t, below, "bind", "[::]:30080"); got.Errno != int(syscall.EADDRINUSE) {
		t.Errorf("N08 bind of a NodePort: %+v", got)
	}
}

// TestSocketOtherNamespace lets a pod bind what is a NodePort of the node, and serves host sockets alone if told so.
func TestSocketOtherNamespace(t *testing.T) {
	here, err := namespaces.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	edge := newSocketEdge(t, Constants{NodeNetNS: here + 1, SocketHostOnly: true})
	edge.serve(t, socketService("none", compile.UDP, "10.96.0.2:53"), socketService("node", compile.TCP, "[::]:30080", netip.MustParseAddrPort("[fd00::1]:1")))
	if err := edge.set.Namespaces.Update(here, &maps.Namespace{}, ebpf.UpdateLock); err != nil {
		t.Fatal(err)
	}
	if got := inCgroup(t, edge.cgroup, "bind", "[::]:30080"); got.Errno != 0 {
		t.Errorf("N08 bind of a pod: %+v", got)
	}
	if got := inCgroup(t, edge.cgroup, "udp", "10.96.0.2:53"); got.Errno == int(syscall.ECONNREFUSED) {
		t.Errorf("a pod's socket is served: %+v", got)
	}
}
