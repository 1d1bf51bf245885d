package surroundings

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/weir-lb/weir/controlplane/compile"
)

// inNamespace moves the test to a network namespace of its own. Its thread ends with it.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	run(t, "", "ip", "link", "set", "lo", "up")
	write(t, "net/ipv4/ip_forward", "1")
	write(t, "net/ipv6/conf/all/forwarding", "1")
}

func write(t *testing.T, sysctl, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+sysctl, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, input, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, output)
	}
}

// nodePort returns a service with a NodePort.
func nodePort(protocol compile.Protocol, family compile.Family, number uint16) compile.Service {
	address := netip.IPv4Unspecified()
	if family == compile.IPv6 {
		address = netip.IPv6Unspecified()
	}
	return compile.Service{
		ID:        compile.ID{Namespace: "default", Name: "web", Protocol: protocol, Family: family},
		Frontends: []compile.Frontend{{Kind: compile.NodePort, Address: netip.AddrPortFrom(address, number)}},
	}
}

// check returns a checker of these services, and what looks and compares the problems.
func check(t *testing.T, pods []compile.Pod, services ...compile.Service) (expect func(what string, now time.Time, parts ...string)) {
	t.Helper()
	c := New(Options{
		Services: slices.Values(services),
		Pods:     func() []compile.Pod { return pods },
		Log:      zap.NewNop(),
	})
	return func(what string, now time.Time, parts ...string) {
		t.Helper()
		problems, err := c.look(now)
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, p := range problems {
			texts = append(texts, p.Object+" "+p.Reason+": "+p.Message)
		}
		if len(texts) != len(parts) {
			t.Fatalf("%s: the problems are %q, want %d: %q", what, texts, len(parts), parts)
		}
		for i, part := range parts {
			if !strings.Contains(texts[i], part) {
				t.Errorf("%s: problem %q does not say %q", what, texts[i], part)
			}
		}
	}
}

func TestForwarding(t *testing.T) {
	inNamespace(t)
	expect := check(t, nil, nodePort(compile.TCP, compile.IPv4, 30080))
	expect("all is well", time.Now())
	write(t, "net/ipv4/ip_forward", "0")
	write(t, "net/ipv6/conf/all/forwarding", "0")
	expect("IPv4 alone is served", time.Now(), "Node ForwardingOff: net.ipv4.ip_forward is 0")
	expect = check(t, nil, nodePort(compile.TCP, compile.IPv6, 30080))
	expect("IPv6 alone is served", time.Now(), "net.ipv6.conf.all.forwarding is 0")
	check(t, nil)("nothing is served", time.Now())
}

// TestPolicies: a policy of drop is told of when it drops, or when nothing can come before it.
func TestPolicies(t *testing.T) {
	inNamespace(t)
	expect := check(t, nil, nodePort(compile.TCP, compile.IPv4, 30080))
	now := time.Now()
	// iptables counts what meets a policy.
	run(t, "*filter\n:FORWARD DROP [5:300]\n-A FORWARD -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n", "iptables-restore", "-c")
	expect("it has dropped before", now)
	expect("it drops nothing", now.Add(time.Minute))
	run(t, "*filter\n:FORWARD DROP [6:360]\n-A FORWARD -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n", "iptables-restore", "-c")
	expect("it has dropped a packet", now.Add(2*time.Minute), "Node ForwardDropped: netfilter's table ip filter, chain FORWARD: its policy is drop, and has dropped")
	expect("a moment ago", now.Add(4*time.Minute), "ForwardDropped")
	expect("long ago", now.Add(8*time.Minute))
	run(t, "*filter\n:FORWARD ACCEPT [6:360]\nCOMMIT\n", "iptables-restore", "-c")
	run(t, "table inet strict { chain gate { type filter hook forward priority 0; policy drop; }; }", "nft", "-f", "-")
	expect("no rules", now.Add(9*time.Minute), "table inet strict, chain gate: it has no rules")
	run(t, "add rule inet strict gate ct state established accept", "nft", "-f", "-")
	expect("rules decide", now.Add(10*time.Minute))
	run(t, "table ip strict { chain gate { type filter hook input priority 0; policy drop; }; }", "nft", "-f", "-")
	expect("another hook", now.Add(11*time.Minute))
}

func TestNodePorts(t *testing.T) {
	inNamespace(t)
	pods := []compile.Pod{{Name: "default/ingress", HostPorts: []compile.HostPort{{Protocol: compile.TCP, Number: 30080}}}}
	services := []compile.Service{
		nodePort(compile.TCP, compile.IPv4, 30080), nodePort(compile.TCP, compile.IPv6, 30080),
		nodePort(compile.TCP, compile.IPv6, 30081), nodePort(compile.UDP, compile.IPv4, 30082),
	}
	listener, err := net.Listen("tcp", "[::]:30081")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	local, err := net.ListenPacket("udp", "127.0.0.1:30082")
	if err != nil {
		t.Fatal(err)
	}
	hostPort := "Service default/web NodePortTaken: NodePort 30080 of TCP is also a hostPort of Pod default/ingress"
	process := "NodePort 30081 of TCP is also that of a process that listens"
	check(t, pods, services...)("a hostPort and a process", time.Now(), hostPort, process)
	check(t, nil, services...)("no Pods are known", time.Now(), process)

	if err := local.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := net.ListenPacket("udp", ":30082")
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	check(t, nil, services...)("UDP", time.Now(), process, "NodePort 30082 of UDP")
}
