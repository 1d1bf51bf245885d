package lab_test

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// atOnce is well below the kernel's first retransmission of a SYN.
const atOnce = 500 * time.Millisecond

// TestNoBackend expects every frontend of a service without endpoints to refuse connections at once: P06.
func TestNoBackend(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds)
		for _, kind := range frontendKinds {
			for _, family := range families {
				for _, protocol := range protocols {
					for _, from := range []*lab.Host{c.Toolbox, c.Client} {
						expectRefused(t, from, protocol, s.Frontend(c.Lab, kind, family))
					}
				}
			}
		}
	})
}

// expectRefused fails the test unless ECONNREFUSED comes at once. One slow answer may be the machine's.
func expectRefused(t *testing.T, from *lab.Host, protocol compile.Protocol, to netip.AddrPort) {
	t.Helper()
	var took time.Duration
	for range 2 {
		begin := time.Now()
		_, err := from.Ask(protocol, netip.AddrPort{}, to)
		took = time.Since(begin)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s asks %s by %s: got %v after %s, want %v", from.Role, to, protocol, err, took, syscall.ECONNREFUSED)
			return
		}
		if took < atOnce {
			return
		}
	}
	t.Errorf("%s asks %s by %s: refused after %s", from.Role, to, protocol, took)
}

// TestEndpointsComeBack takes a service's last endpoint away and gives it another: D02.
func TestEndpointsComeBack(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := shared(t, options)
		s := c.serve(t, lab.AllKinds, c.Local()[0])
		to := s.Frontend(c.Lab, compile.NodePort, compile.IPv4)
		ask(t, c.Client, compile.UDP, to, s.Pods...)
		s.Pods = nil
		c.apply(t, s)
		expectRefused(t, c.Client, compile.UDP, to)
		expectRefused(t, c.Client, compile.TCP, to)
		s.Pods = c.Remote()
		c.apply(t, s)
		ask(t, c.Client, compile.UDP, to, s.Pods...)
		ask(t, c.Client, compile.TCP, to, s.Pods...)
	})
}
