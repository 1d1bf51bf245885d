package kubeproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"
)

// enterNamespace moves the test into a network namespace of its own, which goes with it. 10.96.0.0/16 and
// fd00:10:96::/112 lead to loopback.
func enterNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and with it the namespace
	here, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "address", "add", "192.0.2.1/32", "dev", "lo")
	run(t, "ip", "address", "add", "2001:db8::1/128", "dev", "lo", "nodad")
	run(t, "ip", "route", "add", "10.96.0.0/16", "dev", "lo", "src", "192.0.2.1")
	run(t, "ip", "route", "add", "fd00:10:96::/112", "dev", "lo")
}

// run runs a program in the test's namespace, with input if there is more than a name and arguments to say.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return feed(t, "", name, args...)
}

func feed(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	command := exec.Command(name, args...)
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// connection is one to an address that is translated, and its server.
type connection struct {
	listener       net.Listener
	client, server net.Conn
}

// connect connects to an address whose packets go to a server at port 8080 of another.
func connect(t *testing.T, vip, server string) *connection {
	t.Helper()
	listener, err := net.Listen("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.DialTimeout("tcp", vip, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := &connection{listener, client, accepted}
	t.Cleanup(c.close)
	return c
}

// close ends the connection at once, so that the kernel stops tracking it soon.
func (c *connection) close() {
	_ = c.client.(*net.TCPConn).SetLinger(0)
	c.client.Close()
	c.server.Close()
	c.listener.Close()
}

// alive is an error unless bytes pass both ways.
func (c *connection) alive() error {
	for _, way := range [][2]net.Conn{{c.client, c.server}, {c.server, c.client}} {
		if _, err := io.WriteString(way[0], "?"); err != nil {
			return err
		}
		if err := way[1].SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := io.ReadFull(way[1], make([]byte, 1)); err != nil {
			return err
		}
	}
	return nil
}

// nftablesRules are like those of mode nftables.
const nftablesRules = `
table ip kube-proxy {
	chain nat-output {
		type nat hook output priority -100; policy accept;
		ip daddr 10.96.0.1 tcp dport 80 dnat to 192.0.2.1:8080
	}
}
table ip6 kube-proxy {
	chain nat-output {
		type nat hook output priority -100; policy accept;
		ip6 daddr fd00:10:96::1 tcp dport 80 dnat to [2001:db8::1]:8080
	}
}
`

// iptablesRules are like those of mode iptables, as iptables-restore reads them; with others beside them, the kubelet's
// among them.
const iptablesRules = `
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-SEP-ABCDEFGHIJKLMNOP - [0:0]
:CNI-OTHER - [0:0]
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -j CNI-OTHER
-A KUBE-SERVICES -d VIP -p tcp --dport 80 -j KUBE-SVC-ABCDEFGHIJKLMNOP
-A KUBE-SVC-ABCDEFGHIJKLMNOP -j KUBE-SEP-ABCDEFGHIJKLMNOP
-A KUBE-SEP-ABCDEFGHIJKLMNOP -s SERVER -j KUBE-MARK-MASQ
-A KUBE-SEP-ABCDEFGHIJKLMNOP -p tcp -j DNAT --to-destination TARGET:8080
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// addRules has the rules of a mode there.
func addRules(t *testing.T, mode string) {
	t.Helper()
	if mode == "nftables" {
		feed(t, nftablesRules, "nft", "-f", "-")
		return
	}
	feed(t, strings.NewReplacer("VIP", "10.96.0.1", "SERVER", "192.0.2.1", "TARGET", "192.0.2.1").Replace(iptablesRules), "iptables-nft-restore")
	feed(t, strings.NewReplacer("VIP", "fd00:10:96::1", "SERVER", "2001:db8::1", "TARGET", "[2001:db8::1]").Replace(iptablesRules), "ip6tables-nft-restore")
}

// connectAll connects in both families.
func connectAll(t *testing.T) []*connection {
	t.Helper()
	return []*connection{connect(t, "10.96.0.1:80", "192.0.2.1:8080"), connect(t, "[fd00:10:96::1]:80", "[2001:db8::1]:8080")}
}

// TestRemove: connections go on without the rules; when they have ended, nothing is left but what others have.
func TestRemove(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			enterNamespace(t)
			addRules(t, mode)
			connections := connectAll(t)
			result, err := Remove()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("removed: %s\nleft: %s", strings.Join(result.Removed, "\n"), strings.Join(result.Left, "\n"))
			if len(result.Left) != 1 || !strings.HasPrefix(result.Left[0], "table inet weir-keep and chains KUBE-FORWARD: 2 connections") {
				t.Errorf("left: %q", result.Left)
			}
			rules, err := Find()
			if err != nil || rules.Any() {
				t.Errorf("still there: %s (%v)", rules, err)
			}
			for _, c := range connections {
				if err := c.alive(); err != nil {
					t.Errorf("a connection does not go on: %v", err)
				}
			}
			if _, err := net.DialTimeout("tcp", "10.96.0.1:80", 200*time.Millisecond); err == nil {
				t.Error("new connections are translated")
			}
			if count, removed, err := Release(); count != 2 || len(removed) != 0 || err != nil {
				t.Errorf("Release: %d, %q, %v", count, removed, err)
			}
			release(t, connections)
			others := run(t, "nft", "list", "ruleset")
			for _, kept := range []string{"CNI-OTHER", "KUBE-FIREWALL", "KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"} {
				if mode == "iptables" && !strings.Contains(others, kept) {
					t.Errorf("%s is gone", kept)
				}
			}
			for _, gone := range []string{"weir", "kube-proxy", "KUBE-FORWARD", "KUBE-S", "KUBE-M", "KUBE-P"} {
				if strings.Contains(others, gone) {
					t.Errorf("%s is left:\n%s", gone, others)
				}
			}
		})
	}
}

// release ends connections, and waits until that is noticed.
func release(t *testing.T, connections []*connection) {
	t.Helper()
	run(t, "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=1")
	for _, c := range connections {
		c.close()
	}
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		count, _, err := Release()
		if err != nil || time.Since(begin) > 20*time.Second {
			t.Fatalf("%d connections are left (%v)", count, err)
		}
		if count == 0 {
			return
		}
	}
}

// TestWithoutKeeping shows what the table is for: where rules are simply removed, connections break.
func TestWithoutKeeping(t *testing.T) {
	enterNamespace(t)
	addRules(t, "nftables")
	connections := connectAll(t)
	run(t, "nft", "delete", "table", "ip", "kube-proxy")
	run(t, "nft", "delete", "table", "ip6", "kube-proxy")
	for _, c := range connections {
		if err := c.alive(); err == nil {
			t.Error("a connection goes on all the same: the table is not needed")
		}
	}
}

// TestNothing: where there is nothing of kube-proxy, nothing is made or removed.
func TestNothing(t *testing.T) {
	enterNamespace(t)
	result, err := Remove()
	if err != nil || len(result.Removed)+len(result.Left) > 0 {
		t.Errorf("%+v, %v", result, err)
	}
	if ruleset := run(t, "nft", "list", "ruleset"); ruleset != "" {
		t.Errorf("there is now:\n%s", ruleset)
	}
}

// TestMarkOfOthers: the portmap plugin may have kube-proxy mark its packets. Then those chains stay.
func TestMarkOfOthers(t *testing.T) {
	enterNamespace(t)
	addRules(t, "iptables")
	run(t, "iptables-nft", "-t", "nat", "-A", "CNI-OTHER", "-j", "KUBE-MARK-MASQ")
	result, err := Remove()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"chains KUBE-MARK-MASQ and KUBE-POSTROUTING: used by CNI-OTHER of table ip nat"}
	if diff := cmp.Diff(want, result.Left); diff != "" {
		t.Error(diff)
	}
	rest := run(t, "iptables-nft", "-t", "nat", "-S")
	for _, rule := range []string{"-A CNI-OTHER -j KUBE-MARK-MASQ", "-j KUBE-POSTROUTING", "MASQUERADE --random-fully"} {
		if !strings.Contains(rest, rule) {
			t.Errorf("%s is not there any more:\n%s", rule, rest)
		}
	}
	if rules, err := Find(); err != nil || rules.Any() {
		t.Errorf("still there: %s (%v)", rules, err)
	}
}

// TestLegacy says how to remove what only the program of legacy iptables can remove; the advice works.
func TestLegacy(t *testing.T) {
	enterNamespace(t)
	if output, err := exec.Command("iptables-legacy", "-t", "nat", "-L").CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%v: tests/install-packages installs it", err)
	} else if err != nil {
		t.Skipf("the kernel has no tables for legacy iptables: %v: %s", err, output)
	}
	feed(t, strings.NewReplacer("VIP", "10.96.0.1", "SERVER", "192.0.2.1", "TARGET", "192.0.2.1").Replace(iptablesRules), "iptables-legacy-restore")
	c := connect(t, "10.96.0.1:80", "192.0.2.1:8080")
	result, err := Remove()
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Removed) > 0 || len(result.Left) != 2 || !strings.HasPrefix(result.Left[1], "legacy iptables: tables ip ") {
		t.Fatalf("%+v", result)
	}
	_, advice, _ := strings.Cut(result.Left[1], "run on the node: ")
	advice, _, _ = strings.Cut(advice, ", and the same")
	run(t, "sh", "-ec", advice)
	if rules, err := Find(); err != nil || rules.Any() {
		t.Errorf("still there: %s (%v)", rules, err)
	}
	if rest := run(t, "iptables-legacy-save"); !strings.Contains(rest, "CNI-OTHER") || strings.Contains(rest, "KUBE-S") {
		t.Errorf("left:\n%s", rest)
	}
	if err := c.alive(); err != nil {
		t.Errorf("the connection does not go on: %v", err)
	}
}

// TestRunning refuses to remove rules under a kube-proxy that runs.
func TestRunning(t *testing.T) {
	enterNamespace(t)
	program := t.TempDir() + "/kube-proxy"
	run(t, "cp", "/bin/sleep", program)
	process := exec.Command(program, "60")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Process.Kill(); _ = process.Wait() })
	want := fmt.Sprintf("kube-proxy is running (pid %d)", process.Process.Pid)
	if _, err := Remove(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

// TestRunningElsewhere: a kube-proxy in another process namespace is found by its answer. Weir's is none of it.
func TestRunningElsewhere(t *testing.T) {
	enterNamespace(t)
	listener, err := net.Listen("tcp", metricsAddress)
	if err != nil {
		t.Fatal(err)
	}
	var mode atomic.Value
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/proxyMode" {
			fmt.Fprint(w, mode.Load())
		}
	})}
	go server.Serve(listener) //nolint:errcheck // closed with the test
	t.Cleanup(func() { server.Close() })
	mode.Store("nftables")
	want := "kube-proxy is running (http://127.0.0.1:10249/proxyMode says nftables)"
	if _, err := Remove(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
	mode.Store("weir")
	if _, err := Remove(); err != nil {
		t.Errorf("Weir is taken for it: %v", err)
	}
}

// TestManyChains removes what a cluster of some thousand Services has.
func TestManyChains(t *testing.T) {
	enterNamespace(t)
	var rules strings.Builder
	rules.WriteString("*nat\n")
	const services = 5000
	for i := range services {
		fmt.Fprintf(&rules, ":KUBE-SVC-%016d - [0:0]\n:KUBE-SEP-%016d - [0:0]\n", i, i)
	}
	for i := range services {
		fmt.Fprintf(&rules, "-A KUBE-SVC-%016d -j KUBE-SEP-%016d\n", i, i)
	}
	rules.WriteString("COMMIT\n")
	feed(t, rules.String(), "iptables-nft-restore")
	begin := time.Now()
	result, err := Remove()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{fmt.Sprintf("%d chains of table ip nat", 2*services)}, result.Removed); diff != "" {
		t.Error(diff)
	}
	t.Logf("removed within %s", time.Since(begin))
}
