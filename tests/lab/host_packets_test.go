package lab_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// routedKinds are the frontends whose packets leave the node where nobody translates them. NodePorts are the node's own
// addresses.
var routedKinds = []compile.FrontendKind{compile.ClusterIP, compile.LoadBalancer, compile.ExternalIP}

// TestPacketsOfNode asks frontends from a process of the node, whose sockets are not translated: its packets are, where
// they leave. Backends are pods of the node, and others: C01, L08.
func TestPacketsOfNode(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		for name, pod := range map[string]*lab.Host{"pod of the node": c.Local()[0], "pod elsewhere": c.Remote()[0]} {
			s := c.serve(t, lab.AllKinds, pod)
			for _, kind := range routedKinds {
				for _, family := range families {
					for _, protocol := range protocols {
						t.Run(fmt.Sprintf("%s/%s/%s/%s", name, kind, family, protocol), func(t *testing.T) {
							conn := dial(t, c.Node1, protocol, netip.AddrPort{}, s.Frontend(c.Lab, kind, family))
							for range 3 {
								expectServer(t, askOn(t, conn), pod)
							}
						})
					}
				}
			}
			for _, family := range families {
				conn := dial(t, c.Node1, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.ClusterIP, family))
				if err := conn.Exchange(1<<20, 1<<20, 20*time.Second); err != nil {
					t.Errorf("%s, %s: %v", name, family, err)
				}
			}
		}
	})
}
