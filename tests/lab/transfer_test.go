package lab_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// transferSize is what goes each way: thousands of large segments.
const transferSize = 8 << 20

// ethernetMTU is the largest packet on a wire.
const ethernetMTU = 1500

// TestTransfer moves bulk data both ways at once through segmentation offload, and compares its digests.
func TestTransfer(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		services := map[string]lab.Service{
			"local":  c.serve(t, lab.AllKinds, c.Local()...),
			"remote": c.serve(t, lab.AllKinds, c.Remote()...),
		}
		for where, s := range services {
			for _, family := range families {
				for _, from := range []*lab.Host{c.Toolbox, c.Client} {
					t.Run(fmt.Sprintf("%s/%s/from %s", where, family, from.Role), func(t *testing.T) {
						transfer(t, from, s.Frontend(c.Lab, compile.LoadBalancer, family))
					})
				}
			}
			expectLargePackets(t, c, s)
		}
	})
}

// expectLargePackets fails the test unless the programs have seen packets larger than any wire's, both ways: merged
// ones. Devices without segmentation offload, and veths that have XDP, carry none.
func expectLargePackets(t *testing.T, c *cluster, s lab.Service) {
	t.Helper()
	if c.Options.RealNICs || c.Options.Outside == lab.Tun || c.Options.Nodes == lab.Tun {
		return
	}
	for _, family := range families {
		seen, err := c.agent.Traffic(s.Frontend(c.Lab, compile.LoadBalancer, family), compile.TCP)
		if err != nil {
			t.Fatal(err)
		}
		up, down := seen.Bytes/max(seen.Packets, 1), seen.ReplyBytes/max(seen.ReplyPackets, 1)
		if up < 2*ethernetMTU || down < 2*ethernetMTU {
			t.Errorf("%s: packets had %d bytes on their way, %d back: offload was not at work", family, up, down)
		}
	}
}

// transfer moves bulk data both ways.
func transfer(t *testing.T, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	conn := dial(t, from, compile.TCP, netip.AddrPort{}, to)
	if err := conn.Exchange(transferSize, transferSize, 30*time.Second); err != nil {
		t.Errorf("%s to %s: %v", from.Role, to, err)
	}
}

// TestHairpin lets a pod reach itself through each of its frontends: C04.
func TestHairpin(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		pod := c.Local()[0]
		s := c.serve(t, lab.AllKinds, pod)
		for _, kind := range frontendKinds {
			for _, family := range families {
				to := s.Frontend(c.Lab, kind, family)
				for _, protocol := range protocols {
					answer := ask(t, pod, protocol, to, pod)
					if answer.Client.Addr() == pod.Addr(family) {
						t.Errorf("%s by %s: the pod sees itself as its client: it would answer past the program", to, protocol)
					}
				}
				transfer(t, pod, to)
			}
		}
	})
}
