package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// connectCounter is a program of somebody else's on a cgroup: it lets everybody connect over IPv4, and counts them.
type connectCounter struct {
	program *ebpf.Program
	counts  *ebpf.Map
}

func newConnectCounter(t *testing.T) connectCounter {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { counts.Close() })
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, counts.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "allow"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("allow"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return connectCounter{program, counts}
}

// counted is how often it was asked.
func (c connectCounter) counted(t *testing.T) (count uint64) {
	t.Helper()
	if err := c.counts.Lookup(uint32(0), &count); err != nil {
		t.Fatal(err)
	}
	return count
}

// TestForeignCgroupProgram: a program of somebody else's on the same cgroup goes on, whether it was there before the agent
// or came later, and so does the socket edge.
func TestForeignCgroupProgram(t *testing.T) {
	t.Parallel()
	c := own(t, socketLab, socketEdge...)
	s := c.serve(t, nil, c.Local()...)
	to := s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4)
	foreign := newConnectCounter(t)
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: c.Node1.CgroupRoot(), Attach: ebpf.AttachCGroupInet4Connect, Program: foreign.program})
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	both := func(when string) {
		t.Helper()
		for _, from := range []*lab.Host{c.Node1, c.Toolbox} {
			before, translated := foreign.counted(t), counters(t, c).SocketTranslated
			ask(t, from, compile.TCP, to, s.Pods...)
			if foreign.counted(t) == before {
				t.Errorf("%s %s: the other's program was not asked", when, from.Role)
			}
			if counters(t, c).SocketTranslated == translated {
				t.Errorf("%s %s: the socket edge has not served", when, from.Role)
			}
		}
	}
	both("It came later.")
	if err := c.agent.Terminate(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.agent.CLI("cleanup"); err != nil {
		t.Fatal(err)
	}
	if err := c.agent.Start(); err != nil {
		t.Fatal(err)
	}
	c.apply(t, s)
	waitHealthy(t, c)
	both("It was there before.")
}

// TestExclusiveCgroupProgram: where somebody's program shares the cgroup with nobody, the status says so and what to do, pods
// are served at the pod edge, and sockets as soon as it has gone.
func TestExclusiveCgroupProgram(t *testing.T) {
	t.Parallel()
	c := own(t, socketLab, socketEdge...)
	if err := c.agent.Terminate(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.agent.CLI("cleanup"); err != nil {
		t.Fatal(err)
	}
	foreign := newConnectCounter(t)
	cgroup, err := os.Open(c.Node1.CgroupRoot())
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	attach := link.RawAttachProgramOptions{Target: int(cgroup.Fd()), Program: foreign.program, Attach: ebpf.AttachCGroupInet4Connect}
	if err := link.RawAttachProgram(attach); err != nil {
		t.Fatal(err)
	}
	if err := c.agent.Start(); err != nil {
		t.Fatal(err)
	}
	s := c.serve(t, nil, c.Local()...)
	for _, family := range families {
		ask(t, c.Toolbox, compile.TCP, s.Frontend(c.Lab, compile.ClusterIP, family), s.Pods...)
	}
	expectStatus(t, c, "socket edge: serves nobody: ", "bpftool cgroup tree shows it: detach it, or name another --cgroup-root")
	if before := foreign.counted(t); before == 0 {
		t.Error("the other's program is asked no more")
	}
	if counters(t, c).SocketTranslated > 0 {
		t.Error("half a socket edge serves")
	}
	if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: attach.Target, Program: attach.Program, Attach: attach.Attach}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		if _, err := c.Node1.AskWithin(time.Second, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4)); err != nil {
			return err
		}
		if counters(t, c).SocketTranslated == 0 {
			return errors.New("no socket is served yet")
		}
		return nil
	})
	expectStatus(t, c, "proven by a connect from another cgroup")
}

// expectStatus expects words of weir status.
func expectStatus(t *testing.T, c *cluster, words ...string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		status, err := c.agent.CLI("status")
		for _, w := range words {
			if err == nil && !strings.Contains(status, w) {
				err = fmt.Errorf("the status does not say %q:\n%s", w, status)
			}
		}
		return err
	})
}

// TestWrongCgroup: an agent that is told a directory which is no cgroup says so and does not start, and what was there goes
// on; told another cgroup, it serves that one alone.
func TestWrongCgroup(t *testing.T) {
	t.Parallel()
	c := own(t, socketLab, socketEdge...)
	s := c.serve(t, nil, c.Local()...)
	to := s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4)
	if err := c.agent.Terminate(); err != nil {
		t.Fatal(err)
	}
	served := func(from *lab.Host) bool {
		t.Helper()
		before := counters(t, c).SocketTranslated
		ask(t, from, compile.TCP, to, s.Pods...)
		return counters(t, c).SocketTranslated > before
	}
	args := c.agent.Args
	for _, root := range []string{c.Dir, filepath.Join(c.Dir, "missing")} {
		c.agent.Args = append(args[:len(args):len(args)], "--cgroup-root", root)
		if err := c.agent.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, func() error {
			if c.agent.Running() == nil {
				return errors.New("the agent runs")
			}
			if log := c.agent.LogTail(); !strings.Contains(log, root) {
				return fmt.Errorf("the agent does not name %s: %s", root, log)
			}
			return nil
		})
		if !served(c.Node1) || !served(c.Toolbox) {
			t.Error("what was there does not go on")
		}
	}
	c.agent.Args = append(args[:len(args):len(args)], "--cgroup-root", c.Toolbox.Cgroup())
	if err := c.agent.Start(); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, c)
	if !served(c.Toolbox) {
		t.Error("the cgroup that was named is not served")
	}
	before := counters(t, c).SocketTranslated
	_, _ = c.Node1.AskWithin(300*time.Millisecond, compile.TCP, netip.AddrPort{}, to)
	if counters(t, c).SocketTranslated > before {
		t.Error("another cgroup than the one that was named is served")
	}
}

// TestHostNetworkPodLeavesSocketEdge: of pods with the node's network, the cgroup tells which one asks.
func TestHostNetworkPodLeavesSocketEdge(t *testing.T) {
	t.Parallel()
	c := own(t, socketLab, socketEdge...)
	s := c.serve(t, nil, c.Local()...)
	to := s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4)
	pod := filepath.Join(c.Node1.CgroupRoot(), "kubepods-pod0a1b2c3d_0001.slice") // as the kubelet names it
	if err := os.Mkdir(pod, 0o755); err != nil {
		t.Fatal(err)
	}
	const manifest = "{apiVersion: v1, kind: Pod, metadata: {name: proxy, namespace: mesh, uid: 0a1b2c3d-0001, annotations: {weir-lb.io/socket-lb: %q}}, spec: {nodeName: node1, hostNetwork: true}}"
	for _, value := range []string{"on", "off", "on"} {
		if err := c.agent.Write("proxy", fmt.Sprintf(manifest, value)); err != nil {
			t.Fatal(err)
		}
		eventually(t, 15*time.Second, func() error {
			before := counters(t, c).SocketTranslated
			connectIn(t, c.Node1, pod, to)
			if translated := counters(t, c).SocketTranslated > before; translated != (value == "on") {
				return fmt.Errorf("with %s its sockets are served: %v", value, translated)
			}
			return nil
		})
		before := counters(t, c).SocketTranslated
		ask(t, c.Node1, compile.TCP, to, s.Pods...)
		if counters(t, c).SocketTranslated == before {
			t.Error("other processes of the node are not served")
		}
	}
}

// connectIn has a process in a cgroup connect. Who serves it then is not asked.
func connectIn(t *testing.T, host *lab.Host, cgroup string, to netip.AddrPort) {
	t.Helper()
	group, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	process := exec.Command("socat", "-T1", "/dev/null", "TCP:"+to.String()+",connect-timeout=0.3")
	process.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := host.Start(process); err != nil {
		t.Fatal(err)
	}
	_ = process.Wait() // it may not have been served
}
