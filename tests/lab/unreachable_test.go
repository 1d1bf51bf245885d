package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestX04PortUnreachable has backends without a server: what they say of a datagram reaches its sender, who asked a
// frontend, at once.
func TestX04PortUnreachable(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		for _, backend := range []*lab.Host{c.Toolbox, c.Node2} {
			sayAll(t, backend)
			s := c.serve(t, lab.AllKinds, backend)
			for _, kind := range frontendKinds {
				for _, family := range families {
					for _, from := range []*lab.Host{c.Client, c.Local()[1]} {
						expectRefused(t, from, compile.UDP, s.Frontend(c.Lab, kind, family))
					}
				}
			}
		}
	})
}

// sayAll lets a host send as many ICMP errors as there are reasons to.
func sayAll(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := errors.Join(h.Sysctl("net/ipv4/icmp_ratelimit", "0"), h.Sysctl("net/ipv6/icmp/ratelimit", "0")); err != nil {
		t.Fatal(err)
	}
}

// TestX04Traceroute follows the way to a frontend, whose backends are on the node and elsewhere: the node that sends
// packets on names itself, and what has been told of translated ones speaks as the frontend.
func TestX04Traceroute(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		for _, host := range []*lab.Host{c.Node1, c.Node2} {
			sayAll(t, host)
		}
		local, remote := c.serve(t, lab.AllKinds, c.Local()[0]), c.serve(t, lab.AllKinds, c.Remote()[0])
		for _, family := range families {
			to := local.Frontend(c.Lab, compile.LoadBalancer, family)
			expectHops(t, c.Client, to, to.Addr(), to.Addr())
			to = remote.Frontend(c.Lab, compile.LoadBalancer, family)
			expectHops(t, c.Client, to, c.Node1.Addr(family), to.Addr(), to.Addr())
		}
	})
}

// expectHops compares who answers on the way.
func expectHops(t *testing.T, from *lab.Host, to netip.AddrPort, want ...netip.Addr) {
	t.Helper()
	if hops := traceroute(t, from, to); fmt.Sprint(hops) != fmt.Sprint(want) {
		t.Errorf("%s to %s: the hops are %v, want %v", from.Role, to, hops, want)
	}
}

// traceroute returns who answers for each hop on the way to a TCP port.
func traceroute(t *testing.T, from *lab.Host, to netip.AddrPort) []string {
	t.Helper()
	output, err := from.Run("", "traceroute", "-n", "-T", "-p", fmt.Sprint(to.Port()), "-q", "1", "-w", "2", "-m", "6", to.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var hops []string
	for _, line := range strings.Split(strings.TrimSpace(output), "\n")[1:] {
		hops = append(hops, strings.Fields(line)[1])
	}
	return hops
}
