package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// nobodysIP is an address of the ServiceCIDRs that no service of the lab has.
var nobodysIP = map[compile.Family]netip.AddrPort{
	compile.IPv4: netip.MustParseAddrPort("10.96.0.250:80"),
	compile.IPv6: netip.MustParseAddrPort("[fd00:10:96::fa]:80"),
}

// reserve writes ServiceCIDRs that have that address. What other tests do there is none of theirs.
func (c *cluster) reserve(t *testing.T) {
	t.Helper()
	err := c.agent.Write("service-cidrs", `{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.240/28, "fd00:10:96::f0/124"]}}`)
	if err != nil {
		t.Fatal(err)
	}
}

// unknownPortOf returns the ClusterIP of a service with a port that it does not have.
func unknownPortOf(c *cluster, s lab.Service, family compile.Family) netip.AddrPort {
	return netip.AddrPortFrom(s.Frontend(c.Lab, compile.ClusterIP, family).Addr(), 4711)
}

// expectError asks, and fails the test unless the client is told that, and at once.
func expectError(from *lab.Host, protocol compile.Protocol, to netip.AddrPort, want error) error {
	start := time.Now()
	_, err := from.Ask(protocol, netip.AddrPort{}, to)
	if !errors.Is(err, want) || time.Since(start) > time.Second {
		return fmt.Errorf("%s asks %s by %s: got %v after %v, want %v", from.Role, to, protocol, err, time.Since(start), want)
	}
	return nil
}

// TestUnknownPorts asks ports that no Service has, from outside and from a pod: a ClusterIP refuses, an address that no
// Service has says nothing, and neither reaches the network (C05). Known ports are served.
func TestUnknownPorts(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		c.reserve(t)
		s := c.serve(t, lab.AllKinds, c.Web...)
		for _, from := range []*lab.Host{c.Client, c.Toolbox} {
			for _, family := range families {
				for _, protocol := range protocols {
					eventually(t, 15*time.Second, func() error {
						return expectError(from, protocol, unknownPortOf(c, s, family), syscall.ECONNREFUSED)
					})
					ask(t, from, protocol, s.Frontend(c.Lab, compile.ClusterIP, family), s.Pods...)
				}
				expectUnallocated(t, c, from, nobodysIP[family])
			}
		}
	})
}

// expectUnallocated asks an address that no Service has, until the ServiceCIDR is known: then that is counted, and silent.
func expectUnallocated(t *testing.T, c *cluster, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		before := counters(t, c)
		answer, err := from.AskWithin(500*time.Millisecond, compile.TCP, netip.AddrPort{}, to)
		if !isTimeout(err) {
			return fmt.Errorf("%s asks %s: got %+v, %v, want silence", from.Role, to, answer, err)
		}
		if after := counters(t, c); after.DropUnallocated == before.DropUnallocated {
			return fmt.Errorf("%s asks %s, and no packet to nobody's address is counted", from.Role, to)
		}
		return nil
	})
}

// TestUnknownPortsOfSockets asks the same from processes and pods whose sockets are translated (C05).
func TestUnknownPortsOfSockets(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true, HostServers: true, Cgroups: true}, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		c.reserve(t)
		s := c.serve(t, nil, c.Local()[0], c.Remote()[0])
		for _, from := range []*lab.Host{c.Node1, c.Toolbox} {
			for _, family := range families {
				for _, protocol := range protocols {
					for to, want := range map[netip.AddrPort]error{
						unknownPortOf(c, s, family): syscall.ECONNREFUSED, nobodysIP[family]: syscall.EHOSTUNREACH,
					} {
						eventually(t, 15*time.Second, func() error { return expectError(from, protocol, to, want) })
					}
					ask(t, from, protocol, s.Frontend(c.Lab, compile.ClusterIP, family), s.Pods...)
				}
			}
		}
	})
}
