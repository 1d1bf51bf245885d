package lab_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// translateAsKubeProxy has node1's netfilter send what goes to the service's frontends to a pod, as kube-proxy does.
func translateAsKubeProxy(t *testing.T, c *cluster, s lab.Service, pod *lab.Host) {
	t.Helper()
	var rules strings.Builder
	rules.WriteString("table inet kube-proxy {\n chain prerouting { type nat hook prerouting priority dstnat;\n")
	for _, kind := range frontendKinds {
		for _, family := range families {
			to, ip := s.Frontend(c.Lab, kind, family), map[compile.Family]string{compile.IPv4: "ip", compile.IPv6: "ip6"}[family]
			for protocol, port := range map[string]uint16{"tcp": lab.TCPPort, "udp": lab.UDPPort} {
				fmt.Fprintf(&rules, "  %s daddr %s %s dport %d dnat %s to %s\n", ip, to.Addr(), protocol, to.Port(), ip,
					netip.AddrPortFrom(pod.Addr(family), port))
			}
		}
	}
	rules.WriteString(" }\n chain postrouting { type nat hook postrouting priority srcnat;\n")
	fmt.Fprintf(&rules, "  ct status dnat ip saddr != 10.1.0.0/16 ip daddr %s masquerade\n", pod.IPv4)
	fmt.Fprintf(&rules, "  ct status dnat ip6 saddr != fd00:10:1::/48 ip6 daddr %s masquerade\n }\n}\n", pod.IPv6)
	if _, err := c.Node1.Run(rules.String(), "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// TestTakeOver starts the agent on a node where another proxy is: connections that this one has translated go on through
// it, from outside and from pods, though the Service has no such endpoint; new ones are Weir's. So it is when the agent
// has started again, and when its programs are there already.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		for _, elsewhere := range []bool{false, true} {
			c := &cluster{Lab: build(t, options)}
			old, pod := c.Local()[0], c.Local()[1]
			if elsewhere {
				old = c.Remote()[0]
			}
			s := lab.Service{Name: "web", Number: 1, Kinds: lab.AllKinds, Pods: []*lab.Host{pod}}
			translateAsKubeProxy(t, c, s, old)
			var conns []*lab.Conn
			for _, protocol := range protocols {
				for _, kind := range frontendKinds {
					for _, family := range families {
						for _, from := range []*lab.Host{c.Client, c.Toolbox} {
							conns = append(conns, dial(t, from, protocol, netip.AddrPort{}, s.Frontend(c.Lab, kind, family)))
						}
					}
				}
			}
			expectAlive(t, conns, old)
			agent, err := c.NewAgentOn(c.Node1, weirBinary)
			if err != nil {
				t.Fatal(err)
			}
			c.agent, c.agents = agent, []*lab.Agent{agent}
			t.Cleanup(func() { c.explain(t) })
			c.write(t, s)
			startServing(t, c, s)
			expectRecorded(t, c)
			expectAlive(t, conns, old)
			askEverywhereFrom(t, c, s, pod)
			if err := agent.Terminate(); err != nil {
				t.Fatal(err)
			}
			startServing(t, c, s)
			expectAlive(t, conns, old)
			askEverywhereFrom(t, c, s, pod)
		}
	})
}

// startServing starts the agent and waits until it serves a service whose manifest is there.
func startServing(t *testing.T, c *cluster, s lab.Service) {
	t.Helper()
	if err := c.agent.Start(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.agent.WaitHealthy(), c.agent.WaitServed(s)); err != nil {
		t.Fatal(err)
	}
}

// expectRecorded waits until the agent says that it has looked for the connections of others.
func expectRecorded(t *testing.T, c *cluster) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		output, err := c.agent.CLI("status")
		if err == nil && !strings.Contains(output, "at the start, which pass untouched") {
			err = fmt.Errorf("weir status says\n%s", output)
		}
		return err
	})
}

// askEverywhereFrom expects the pod to answer the client and the toolbox on every frontend.
func askEverywhereFrom(t *testing.T, c *cluster, s lab.Service, pod *lab.Host) {
	t.Helper()
	for _, protocol := range protocols {
		for _, kind := range frontendKinds {
			for _, family := range families {
				for _, from := range []*lab.Host{c.Client, c.Toolbox} {
					ask(t, from, protocol, s.Frontend(c.Lab, kind, family), pod)
				}
			}
		}
	}
}

// TestLostStateOfPods takes every flow away: a pod's connection by a frontend is reset with its next packet, for nobody
// knows where it went.
func TestLostStateOfPods(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := own(t, options)
		s := c.serve(t, lab.AllKinds, c.Local()[0], c.Remote()[0])
		var conns []*lab.Conn
		for _, kind := range []compile.FrontendKind{compile.ClusterIP, compile.LoadBalancer} {
			for _, family := range families {
				conn := dial(t, c.Toolbox, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, kind, family))
				askOn(t, conn)
				conns = append(conns, conn)
			}
		}
		forgetEverything(t, c)
		if err := c.agent.WaitServed(s); err != nil {
			t.Fatal(err)
		}
		for _, conn := range conns {
			if answer, err := conn.Ask(); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("asked on a lost connection to %s, %s answers (%v)", conn.RemoteAddrPort(), answer.Server, err)
			}
		}
		ask(t, c.Toolbox, compile.TCP, s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4), s.Pods...)
	})
}
