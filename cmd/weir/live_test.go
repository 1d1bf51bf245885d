package main

import (
	"encoding/json"
	"errors"
	"fmt"
	gomaps "maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/weir-lb/weir/maps"
)

// liveLimit is how long a change of a file may take to be in the maps.
const liveLimit = 50 * time.Millisecond

// TestFileIsLive changes a manifest beside a thousand Services, again and again, and looks when the maps have it.
func TestFileIsLive(t *testing.T) {
	needRoot(t)
	a := startAgent(t)
	a.write(t, "bulk.yaml", manyServices(1000))
	a.await(t, maps.FrontendKeyOf(netip.MustParseAddrPort("10.97.3.231:80"), 6))
	for _, way := range []struct {
		name  string
		write func(path string, content []byte) error
	}{
		{"replaced", replace},
		{"written in place", func(path string, content []byte) error { return os.WriteFile(path, content, 0o644) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			var took []time.Duration
			for i := range 40 {
				port := uint16(1000 + i)
				start := time.Now()
				if err := way.write(filepath.Join(a.manifests, "web.yaml"), []byte(oneService("web", "10.96.0.10", port))); err != nil {
					t.Fatal(err)
				}
				a.await(t, maps.FrontendKeyOf(netip.AddrPortFrom(netip.MustParseAddr("10.96.0.10"), port), 6))
				took = append(took, time.Since(start))
				time.Sleep(20 * time.Millisecond) // a change on its own, not one of a stream
			}
			slices.Sort(took)
			median, worst := took[len(took)/2], took[len(took)-1]
			t.Logf("live after %s (median), %s (worst of %d)", median, worst, len(took))
			if median > liveLimit {
				t.Errorf("a changed file is live after %s (median), want less than %s", median, liveLimit)
			}
		})
	}
}

// TestRestartWritesNothing kills an agent and starts another: what is in the maps, the programs and their links are
// what they were, and the new agent says that it has written nothing.
func TestRestartWritesNothing(t *testing.T) {
	needRoot(t)
	a := startAgent(t)
	a.write(t, "bulk.yaml", manyServices(100))
	for i := range 20 { // a past, with records and tables that were replaced
		a.write(t, "web.yaml", oneService("web", "10.96.0.10", uint16(1000+i)))
		a.await(t, maps.FrontendKeyOf(netip.AddrPortFrom(netip.MustParseAddr("10.96.0.10"), uint16(1000+i)), 6))
	}
	a.settle(t)
	a.kill(t)
	before := a.everything(t)
	a.start(t)
	a.settle(t)
	said := a.status(t)
	if said.Agent.Sync.Services != 101 || said.Agent.Sync.Writes != 0 {
		t.Errorf("the second agent has %d services, want 101, and wrote %d times, want 0",
			said.Agent.Sync.Services, said.Agent.Sync.Writes)
	}
	if changes := said.Agent.Changes; changes.Attached+changes.Updated+changes.Moved+changes.Detached != 0 {
		t.Errorf("the second agent has changed attachments: %+v", changes)
	}
	a.kill(t)
	if difference := diff(before, a.everything(t)); difference != "" {
		t.Errorf("what is pinned has changed: %s", difference)
	}
}

// liveAgent is an agent on a node of its own.
type liveAgent struct {
	node      *node
	manifests string
	process   *exec.Cmd
	log       string
	frontends *ebpf.Map
}

// startAgent starts an agent that serves nothing yet.
func startAgent(t *testing.T) *liveAgent {
	t.Helper()
	dir := t.TempDir()
	n, err := newNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.end)
	a := &liveAgent{node: n, manifests: filepath.Join(dir, "m"), log: filepath.Join(dir, "log")}
	if err := os.Mkdir(a.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	a.settle(t)
	a.frontends, err = ebpf.LoadPinnedMap(filepath.Join(a.pins(), "frontends"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.frontends.Close() })
	return a
}

// start starts the process.
func (a *liveAgent) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a.process = a.node.command("weir", "agent", "--manifests", a.manifests, "--socket-lb", "off", "--node-name", "node1")
	a.process.Stderr = log
	if err := a.process.Start(); err != nil {
		t.Fatal(err)
	}
	process := a.process
	t.Cleanup(func() {
		if err := process.Process.Kill(); err == nil {
			_ = process.Wait() // it was killed
		}
	})
}

// kill ends the process without a chance to do anything.
func (a *liveAgent) kill(t *testing.T) {
	t.Helper()
	if err := a.process.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = a.process.Wait() // it was killed
}

// pins is the directory of pins as it is seen from here.
func (a *liveAgent) pins() string { return a.node.path("sys/fs/bpf/weir") }

// write puts a manifest where the agent looks.
func (a *liveAgent) write(t *testing.T, name, content string) {
	t.Helper()
	if err := replace(filepath.Join(a.manifests, name), []byte(content)); err != nil {
		t.Fatal(err)
	}
}

// replace writes a file beside another and puts it in its place.
func replace(path string, content []byte) error {
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// await waits for a frontend.
func (a *liveAgent) await(t *testing.T, key maps.FrontendKey) {
	t.Helper()
	var value maps.Frontend
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Microsecond) {
		err := a.frontends.Lookup(&key, &value)
		if err == nil {
			return
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) || time.Now().After(deadline) {
			log, _ := os.ReadFile(a.log)
			t.Fatalf("frontend %s: %v; the agent's log: %s", key.AddrPort(), err, log)
		}
	}
}

// settle waits until this agent has brought the maps up to date.
func (a *liveAgent) settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		said, err := a.tryStatus()
		if err == nil && said.Healthy && said.Agent.PID == a.process.Process.Pid && said.Agent.Sync.Waiting.IsZero() {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(a.log)
			t.Fatalf("the agent is not healthy: %v %q; its log: %s", err, said.Reasons, log)
		}
	}
}

// status asks weir status.
func (a *liveAgent) status(t *testing.T) statusView {
	t.Helper()
	said, err := a.tryStatus()
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func (a *liveAgent) tryStatus() (said statusView, err error) {
	output, err := a.node.command("weir", "status", "-o", "json").Output()
	if err != nil {
		return said, err
	}
	return said, json.Unmarshal(output, &said)
}

// everything returns what is pinned: the elements of the maps that an agent writes, and the ids of links and programs.
func (a *liveAgent) everything(t *testing.T) map[string]string {
	t.Helper()
	set, err := maps.Open(a.pins())
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	all := map[string]string{}
	for _, err := range []error{
		elements[maps.FrontendKey, maps.Frontend](all, set.Frontends),
		elements[uint32, maps.Service](all, set.Services),
		elements[uint32, maps.ServiceName](all, set.ServiceNames),
		elements[uint32, maps.SlotBlock](all, set.Slots),
		elements[uint32, maps.Backend](all, set.Backends),
		elements[uint32, maps.DeviceRecord](all, set.Devices),
		elements[maps.Address, uint32](all, set.NodeAddrs),
		elements[uint32, maps.AgentRecord](all, set.AgentState),
		a.links(all),
		a.programs(all),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// elements adds those of a map that are not zero.
func elements[K, V comparable](all map[string]string, m *ebpf.Map) error {
	var zero V
	found := map[K]V{}
	err := each(m, func(key K, value V) {
		if value != zero {
			found[key] = value
		}
	})
	if len(found) == 0 {
		return fmt.Errorf("%s is empty (%w): to find it unchanged proves nothing", m, err)
	}
	for key, value := range gomaps.All(found) {
		all[fmt.Sprintf("%s %v", m, key)] = fmt.Sprint(value)
	}
	return err
}

// links adds the pinned links.
func (a *liveAgent) links(all map[string]string) error {
	return a.pinned("links", func(path string) error {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return err
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return err
		}
		all["link "+filepath.Base(path)] = fmt.Sprintf("link %d of program %d", info.ID, info.Program)
		return nil
	})
}

// programs adds the pinned programs.
func (a *liveAgent) programs(all map[string]string) error {
	return a.pinned("programs", func(path string) error {
		p, err := ebpf.LoadPinnedProgram(path, nil)
		if err != nil {
			return err
		}
		defer p.Close()
		info, err := p.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		all["program "+filepath.Base(path)] = fmt.Sprintf("program %d", id)
		return nil
	})
}

// pinned calls a function with everything pinned in a directory, of which there must be something.
func (a *liveAgent) pinned(dir string, do func(path string) error) error {
	paths, err := filepath.Glob(filepath.Join(a.pins(), dir, "*"))
	if len(paths) == 0 {
		return fmt.Errorf("nothing is pinned in %s (%w)", dir, err)
	}
	for _, path := range paths {
		if err := do(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// oneService returns the manifest of a Service with three endpoints.
func oneService(name, address string, port uint16) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {clusterIP: %[2]s, ports: [{port: %[3]d}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-1, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.244.1.1]}, {addresses: [10.244.1.2]}, {addresses: [10.244.1.3]}]
`, name, address, port)
}

// manyServices returns a manifest of that many Services, at 10.97.0.0 and on.
func manyServices(count int) string {
	var out strings.Builder
	for i := range count {
		address := netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
		fmt.Fprintf(&out, "---\n%s", oneService(fmt.Sprintf("bulk-%d", i), address.String(), 80))
	}
	return out.String()
}
