package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// judged are the labs whose packets are judged. No overlay: vxlan merges what it receives, and leaves nothing to judge.
var judged = []struct {
	name    string
	options lab.Options
	agent   []string
}{
	{name: "tc"},
	{name: "xdp", options: lab.Options{RealNICs: true}, agent: xdpNative},
}

// TestJudges sends all that there is by every kind of frontend, and has others judge the packets: tcpdump the checksums
// of each that comes to a client or a backend, and the kernel's counters whether there was any that it could not use.
func TestJudges(t *testing.T) {
	t.Parallel()
	for _, l := range judged {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, l.options, func(t *testing.T, options lab.Options) {
				testJudges(t, own(t, options, l.agent...))
			})
		})
	}
}

func testJudges(t *testing.T, c *cluster) {
	if err := c.CompleteChecksums(); err != nil {
		t.Fatal(err)
	}
	ends := append([]*lab.Host{c.Client, c.Toolbox}, c.Web...)
	var captures []*lab.Capture
	for _, host := range ends {
		capture, err := c.Capture(host)
		if err != nil {
			t.Fatal(err)
		}
		captures = append(captures, capture)
	}
	sendEverything(t, c)
	for i, host := range ends {
		wrong, right, err := captures[i].Wrong()
		if err != nil {
			t.Fatal(err)
		}
		if len(wrong) > 0 {
			t.Errorf("%s: tcpdump says of %d packets that they are wrong, %d are right: %q", host.Role, len(wrong), right, wrong[:min(len(wrong), 5)])
		}
		if right < 100 {
			t.Errorf("%s: only %d checksums were judged", host.Role, right)
		}
		found, err := host.InputErrors()
		if err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 {
			t.Errorf("%s: the kernel counts %v", host.Role, found)
		}
	}
}

// sendEverything asks by every kind of frontend, from outside and from a pod: in packets and fragments, much and little;
// it pings, and is refused.
func sendEverything(t *testing.T, c *cluster) {
	t.Helper()
	nobody := c.serve(t, lab.AllKinds)
	for _, backend := range c.Web {
		s := c.serve(t, lab.AllKinds, backend)
		from := []*lab.Host{c.Client, c.Toolbox}
		if backend.Node() == c.Node1 {
			from = append(from, backend) // it reaches itself
		}
		for _, host := range from {
			for _, family := range families {
				for _, kind := range frontendKinds {
					to := s.Frontend(c.Lab, kind, family)
					for _, protocol := range protocols {
						ask(t, host, protocol, to, backend)
					}
					askInFragments(t, host, to)
					ping(t, host, to.Addr())
				}
				exchangeSome(t, host, s.Frontend(c.Lab, compile.LoadBalancer, family))
				expectRefusals(t, host, nobody.Frontend(c.Lab, compile.LoadBalancer, family))
			}
		}
	}
}

// exchangeSome moves as much as tcpdump reads in a moment.
func exchangeSome(t *testing.T, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	const size = 256 << 10
	conn := dial(t, from, compile.TCP, netip.AddrPort{}, to)
	if err := conn.Exchange(size, size, 30*time.Second); err != nil {
		t.Errorf("%s to %s: %v", from.Role, to, err)
	}
}

// askInFragments sends a datagram that is longer than any packet, and gets one back.
func askInFragments(t *testing.T, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	conn := dial(t, from, compile.UDP, netip.AddrPort{}, to)
	sendDatagram(t, conn, 4000)
	if n, err := conn.Read(make([]byte, 8192)); err != nil || n < 4000 {
		t.Errorf("%s sends 4000 bytes to %s: %d come back, %v", from.Role, to, n, err)
	}
}

// ping pings a VIP, or an address of the node, which answers too.
func ping(t *testing.T, from *lab.Host, to netip.Addr) {
	t.Helper()
	if _, err := from.Run("", "ping", "-n", "-c", "1", "-W", "2", to.String()); err != nil {
		t.Errorf("%s: %v", from.Role, err)
	}
}
