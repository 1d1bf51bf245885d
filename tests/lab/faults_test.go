package lab_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestFaultsWithoutWeir shows that hosts fail as they are told to, and recover: else a test that counts on it says
// nothing.
func TestFaultsWithoutWeir(t *testing.T) {
	t.Parallel()
	l := build(t, lab.Options{})
	pod := l.Local()[0]
	for _, family := range families {
		to := netip.AddrPortFrom(pod.Addr(family), lab.TCPPort)
		established := dial(t, l.Client, compile.TCP, netip.AddrPort{}, to)
		askOn(t, established)
		for fault, want := range map[lab.Fault]func(error) bool{
			lab.Silent: isTimeout, lab.Refuses: isRefused, lab.Unreachable: isRefused, lab.Dead: isTimeout,
		} {
			recovers := fail(t, pod, fault)
			within := 300 * time.Millisecond
			if fault == lab.Unreachable {
				within = 1500 * time.Millisecond // an error may be there while connect() has the socket: the second one counts
			}
			for _, protocol := range protocols {
				if _, err := l.Client.AskWithin(within, protocol, netip.AddrPort{}, to); !want(err) {
					t.Errorf("%s %s %s: got %v", fault, family, protocol, err)
				}
			}
			if fault != lab.Dead {
				askOn(t, established)
			}
			recovers()
			ask(t, l.Client, compile.TCP, to, pod)
		}
		testLate(t, l.Client, pod, to)
	}
}

// isTimeout tells whether nothing came back.
func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// isRefused tells whether a connection was refused.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// testLate expects a connection to a late host to come about, when it said.
func testLate(t *testing.T, client, pod *lab.Host, to netip.AddrPort) {
	t.Helper()
	recovers := fail(t, pod, lab.Late)
	defer recovers()
	begin := time.Now()
	conn := dial(t, client, compile.TCP, netip.AddrPort{}, to)
	if took := time.Since(begin); took < lab.LateBy {
		t.Errorf("a late host answered after %s", took)
	}
	begin = time.Now()
	expectServer(t, askOn(t, conn), pod)
	if took := time.Since(begin); took > lab.LateBy {
		t.Errorf("a late host was late with data too: %s", took)
	}
}

// fail makes a host fail until the function it returns is called, or the test ends.
func fail(t *testing.T, host *lab.Host, fault lab.Fault) (recovers func()) {
	t.Helper()
	undo, err := host.Fail(fault)
	if err != nil {
		t.Fatal(err)
	}
	done := false
	recovers = func() {
		if done {
			return
		}
		done = true
		if err := undo(); err != nil {
			t.Errorf("%s does not recover: %v", host.Role, err)
		}
	}
	t.Cleanup(recovers)
	return recovers
}

// TestTwoNodesWithoutWeir shows that the client reaches both nodes, and each node the other.
func TestTwoNodesWithoutWeir(t *testing.T) {
	t.Parallel()
	for _, topology := range twoNodes {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, topology.options, func(t *testing.T, options lab.Options) {
				l := build(t, options)
				for _, family := range families {
					for _, protocol := range protocols {
						testOuterAddresses(t, l, family, protocol)
					}
				}
			})
		})
	}
}

// testOuterAddresses asks each node under the address that the client knows, from everywhere.
func testOuterAddresses(t *testing.T, l *lab.Lab, family compile.Family, protocol compile.Protocol) {
	t.Helper()
	for _, node := range l.Nodes() {
		to := netip.AddrPortFrom(l.Outer(node, family), lab.TCPPort)
		for _, from := range []*lab.Host{l.Client, l.Toolbox, l.Remote()[0]} {
			answer := ask(t, from, protocol, to, node)
			if from == l.Client && answer.Client.Addr() != l.Client.Addr(family) {
				t.Errorf("%s sees the client as %s", node.Role, answer.Client)
			}
		}
	}
}
