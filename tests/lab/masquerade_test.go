package lab_test

import (
	"net/netip"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestMasqueradeAll asks from outside, from a process and from a pod whose sockets are translated else: a backend of this
// node and one of the other see an address of node1 where a ClusterIP was asked, and a pod's own where another frontend
// was: C02, C06. Answers, and connections, go on as ever.
func TestMasqueradeAll(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true, HostServers: true, Cgroups: true}, func(t *testing.T, options lab.Options) {
		c := own(t, options, append([]string{"--masquerade-all"}, socketEdge...)...)
		for _, backend := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			s := c.serve(t, lab.AllKinds, backend)
			for _, from := range []*lab.Host{c.Client, c.Node1, c.Toolbox} {
				for _, family := range families {
					for _, protocol := range protocols {
						answer := ask(t, from, protocol, s.Frontend(c.Lab, compile.ClusterIP, family), backend)
						if seen := answer.Client.Addr(); from != c.Node1 && seen == from.Addr(family) || !isOfNode1(t, c, seen) {
							t.Errorf("%s asks %s by %s: the backend sees %s", from.Role, backend.Role, protocol, seen)
						}
					}
				}
			}
			for _, family := range families {
				if seen := ask(t, c.Toolbox, compile.TCP, s.Frontend(c.Lab, compile.LoadBalancer, family), backend).Client.Addr(); seen != c.Toolbox.Addr(family) {
					t.Errorf("asked by a load balancer's address, %s sees %s", backend.Role, seen)
				}
				conn := dial(t, c.Toolbox, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.ClusterIP, family))
				for range 3 {
					expectServer(t, askOn(t, conn), backend)
				}
			}
		}
	})
}

// isOfNode1 tells whether node1 has the address.
func isOfNode1(t *testing.T, c *cluster, address netip.Addr) bool {
	t.Helper()
	out, err := c.Node1.Run("", "ip", "-o", "address", "show", "to", address.String())
	if err != nil {
		t.Fatal(err)
	}
	return out != ""
}
