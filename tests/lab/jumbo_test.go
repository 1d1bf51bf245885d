package lab_test

import (
	"strings"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestJumboFrames has XDP on devices of a large MTU, whose packets lie in several buffers there: they are attached
// natively, and carry bulk data to backends here and elsewhere, also when the peers use all of the MTU.
func TestJumboFrames(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{RealNICs: true}, func(t *testing.T, options lab.Options) {
		options.MTU = 9000
		c := own(t, options, xdpNative...)
		attached, err := c.agent.CLI("status")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(attached, "xdp native node_xdp") != 2 {
			t.Errorf("not both devices of the node have XDP:\n%s", attached)
		}
		for _, backend := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			s := c.serve(t, lab.AllKinds, backend)
			for _, family := range families {
				to := s.Frontend(c.Lab, compile.LoadBalancer, family)
				transfer(t, c.Client, to)
				seen, err := c.agent.Traffic(to, compile.TCP)
				if err != nil {
					t.Fatal(err)
				}
				if up := seen.Bytes / max(seen.Packets, 1); up < 2*ethernetMTU {
					t.Errorf("%s to %s: packets had %d bytes: they were not large", family, backend.Role, up)
				}
			}
		}
	})
}
