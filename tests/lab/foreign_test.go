package lab_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestNodesOwnConnections makes connections from the node's address whose source port equals an active NodePort, to a
// server outside: answers to them come to a frontend's address and port, and are not for it. The NodePort itself
// works before, during and after.
func TestNodesOwnConnections(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds, c.Web...)
		for _, family := range families {
			for _, protocol := range protocols {
				t.Run(fmt.Sprintf("%s/%s", family, protocol), func(t *testing.T) {
					nodePort := s.Frontend(c.Lab, compile.NodePort, family)
					server := netip.AddrPortFrom(c.Client.Addr(family), lab.TCPPort)
					ask(t, c.Client, protocol, nodePort, s.Pods...)
					conn := dial(t, c.Node1, protocol, nodePort, server)
					for range 3 {
						answer := askOn(t, conn)
						expectServer(t, answer, c.Client)
						expectOwn(t, answer, nodePort.Addr(), nodePort.Port())
						ask(t, c.Client, protocol, nodePort, s.Pods...)
					}
				})
			}
		}
	})
}

// TestMasqueradedPod does the same with a pod that netfilter hides behind the node's address and, as chance would have
// it, behind an active NodePort.
func TestMasqueradedPod(t *testing.T) {
	t.Parallel()
	for _, topology := range topologies {
		t.Run(topology.name, func(t *testing.T) {
			t.Parallel()
			options := topology.options
			options.Netfilter = true
			c := shared(t, options, topology.agent...)
			s := c.serve(t, lab.AllKinds, c.Web...)
			hideBehind(t, c, s.NodePort())
			for _, family := range families {
				for _, protocol := range protocols {
					nodePort := s.Frontend(c.Lab, compile.NodePort, family)
					server := netip.AddrPortFrom(c.Client.Addr(family), lab.TCPPort)
					pod := c.Local()[1]
					conn := dial(t, pod, protocol, netip.AddrPortFrom(pod.Addr(family), s.NodePort()-10000), server)
					for range 3 {
						answer := askOn(t, conn)
						expectServer(t, answer, c.Client)
						expectOwn(t, answer, nodePort.Addr(), nodePort.Port())
						ask(t, c.Client, protocol, nodePort, s.Pods...)
					}
				}
			}
		})
	}
}

// hideBehind masquerades what comes from one source port of pods as that port plus 10000.
func hideBehind(t *testing.T, c *cluster, port uint16) {
	t.Helper()
	rules := fmt.Sprintf(`
table inet chance%[1]d {
	chain postrouting {
		type nat hook postrouting priority srcnat - 1; policy accept;
		meta l4proto { tcp, udp } th sport %[2]d masquerade to :%[1]d
	}
}
`, port, port-10000)
	if _, err := c.Node1.Run(rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := c.Node1.Run("", "nft", "delete", "table", "inet", fmt.Sprintf("chance%d", port)); err != nil {
			t.Error(err)
		}
	})
}

// TestBackendOutsideTheCluster serves a hand-made endpoint that is no pod: S11, E14.
func TestBackendOutsideTheCluster(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		s := c.serve(t, lab.AllKinds)
		s.External = []*lab.Host{c.Client}
		c.apply(t, s)
		for _, family := range families {
			for _, protocol := range protocols {
				ask(t, c.Toolbox, protocol, s.Frontend(c.Lab, compile.ClusterIP, family), c.Client)
				ask(t, c.Client, protocol, s.Frontend(c.Lab, compile.NodePort, family), c.Client)
			}
		}
	})
}
