package lab_test

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// topologies are the labs that tests of the datapath run in.
var topologies = []struct {
	name    string
	options lab.Options
	agent   []string // arguments of its own
}{
	{name: "routed"},
	{name: "bridge", options: lab.Options{Pods: lab.Bridge, OneNetwork: true}},
	{name: "overlay", options: lab.Options{Pods: lab.Overlay}},
	{name: "tun outside", options: lab.Options{Outside: lab.Tun}},
	{name: "tun to node2", options: lab.Options{Nodes: lab.Tun}},
	{name: "tun both", options: lab.Options{Outside: lab.Tun, Nodes: lab.Tun}},
	{name: "vlan", options: lab.Options{Outside: lab.VLAN, Nodes: lab.VLAN}},
	{name: "bond", options: lab.Options{Outside: lab.Bond, Nodes: lab.Bond}},
	{name: "clsact", agent: []string{"--attach-mode", "clsact"}},
	{name: "xdp", options: lab.Options{RealNICs: true}, agent: xdpNative},
	{name: "xdp one network", options: lab.Options{OneNetwork: true, RealNICs: true}, agent: xdpNative},
}

// xdpNative makes the agent attach XDP to veths, which it does only when told.
var xdpNative = []string{"--xdp", "native"}

// onEachTopology runs a test in every topology's shared cluster, bare and with a real node's netfilter rules.
func onEachTopology(t *testing.T, test func(t *testing.T, c *cluster)) {
	t.Helper()
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				test(t, shared(t, options, topology.agent...))
			})
		})
	}
}

var (
	families  = []compile.Family{compile.IPv4, compile.IPv6}
	protocols = []compile.Protocol{compile.TCP, compile.UDP}
)

// TestLabWithoutWeir shows that every lab carries the traffic that needs no Weir: else a test of Weir in it says
// nothing.
func TestLabWithoutWeir(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, testPlainTraffic)
		})
	}
}

func testPlainTraffic(t *testing.T, options lab.Options) {
	l := build(t, options)
	clientReaches := l.Web
	if l.Options.OneNetwork || l.Options.Pods == lab.Overlay {
		// node2 answers the client by another way than it was asked, which node1's netfilter does not let pass.
		clientReaches = l.Local()
	}
	for _, family := range families {
		for _, protocol := range protocols {
			for _, pod := range clientReaches {
				askPlainly(t, l.Client, pod, family, protocol)
			}
			for _, pod := range l.Web {
				askPlainly(t, l.Toolbox, pod, family, protocol)
			}
		}
	}
	conn, err := l.Toolbox.Dial(compile.TCP, netip.AddrPort{}, netip.AddrPortFrom(l.Web[2].IPv4, lab.TCPPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Exchange(8<<20, 8<<20, 20*time.Second); err != nil {
		t.Error(err)
	}
}

// askPlainly asks a pod under its own address, and expects it to see the client's.
func askPlainly(t *testing.T, from, pod *lab.Host, family compile.Family, protocol compile.Protocol) {
	t.Helper()
	answer, err := from.Ask(protocol, netip.AddrPort{}, netip.AddrPortFrom(pod.Addr(family), lab.TCPPort))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Server != pod.Role || answer.Client.Addr() != from.Addr(family) {
		t.Errorf("%s asks %s by %s over %s: got %+v", from.Role, pod.Role, protocol, family, answer)
	}
}

// crashEnv makes the test binary build a lab, and wait to be killed.
const crashEnv = "WEIR_LAB_CRASH"

// TestKilledProcessLeavesNothing kills a process that has a lab: its janitor removes the namespaces, and what runs in
// them.
func TestKilledProcessLeavesNothing(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	victim := exec.Command(self)
	victim.Env = append(os.Environ(), crashEnv+"=1")
	output, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	traces := func() []string {
		names, err := filepath.Glob("/run/*/weir-" + strconv.Itoa(victim.Process.Pid) + "-*")
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if len(traces()) == 0 {
		t.Fatal("the lab has no namespaces: looking for them proves nothing")
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wait(); err == nil {
		t.Error("the killed process ended well")
	}
	eventually(t, time.Minute, func() error {
		if left := traces(); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		if child := strings.TrimSpace(line); exists("/proc/" + child + "/ns/net") {
			return fmt.Errorf("process %s still runs", child)
		}
		return nil
	})
}

// exists reports whether there is such a file.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// buildAndWait builds a lab with a process in it, prints the process's id, and waits.
func buildAndWait() error {
	s, err := lab.Open()
	if err != nil {
		return err
	}
	l, err := s.Build(lab.Options{})
	if err != nil {
		return err
	}
	sleep := exec.Command("sleep", "60")
	if err := l.Client.Start(sleep); err != nil {
		return err
	}
	fmt.Println(sleep.Process.Pid)
	return sleep.Wait()
}
