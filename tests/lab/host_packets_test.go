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

// routedKinds are the frontends whose packets leave the node where nobody translates them. NodePorts are the node's own
// addresses.
var routedKinds = []compile.FrontendKind{compile.ClusterIP, compile.LoadBalancer, compile.ExternalIP}

// onEachRouted runs a test for every frontend of a service whose packets leave the node.
func onEachRouted(t *testing.T, c *cluster, s lab.Service, test func(t *testing.T, protocol compile.Protocol, to netip.AddrPort)) {
	t.Helper()
	for _, kind := range routedKinds {
		for _, family := range families {
			for _, protocol := range protocols {
				t.Run(fmt.Sprintf("%s/%s/%s", kind, family, protocol), func(t *testing.T) {
					test(t, protocol, s.Frontend(c.Lab, kind, family))
				})
			}
		}
	}
}

// TestPacketsOfNode asks frontends from a process of the node, whose sockets are not translated: its packets are, where
// they leave. Backends are pods of the node, and others: C01, L08.
func TestPacketsOfNode(t *testing.T) {
	onEachTopology(t, func(t *testing.T, c *cluster) {
		for name, pod := range map[string]*lab.Host{"pod of the node": c.Local()[0], "pod elsewhere": c.Remote()[0]} {
			t.Run(name, func(t *testing.T) {
				s := c.serve(t, lab.AllKinds, pod)
				onEachRouted(t, c, s, func(t *testing.T, protocol compile.Protocol, to netip.AddrPort) {
					conn := dial(t, c.Node1, protocol, netip.AddrPort{}, to)
					for range 3 {
						expectServer(t, askOn(t, conn), pod)
					}
				})
				for _, family := range families {
					conn := dial(t, c.Node1, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.ClusterIP, family))
					if err := conn.Exchange(1<<20, 1<<20, 20*time.Second); err != nil {
						t.Errorf("%s: %v", family, err)
					}
				}
			})
		}
	})
}

// TestPacketsOfNodeToItself has a server of the node itself as the backend. It sees the VIP as its client. C04.
func TestPacketsOfNodeToItself(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{HostServers: true}, func(t *testing.T, options lab.Options) {
		c := shared(t, options)
		s := c.serve(t, lab.AllKinds, c.Node1)
		onEachRouted(t, c, s, func(t *testing.T, protocol compile.Protocol, to netip.AddrPort) {
			conn := dial(t, c.Node1, protocol, netip.AddrPort{}, to)
			for range 3 {
				answer := askOn(t, conn)
				expectServer(t, answer, c.Node1)
				if answer.Client.Addr() != to.Addr() {
					t.Errorf("the server sees %s, want the VIP's address", answer.Client)
				}
			}
			if protocol == compile.TCP {
				if err := conn.Exchange(1<<20, 1<<20, 20*time.Second); err != nil {
					t.Error(err)
				}
			}
		})
	})
}

// TestRawSocketOfNode asks by a raw socket, which the socket edge knows nothing of.
func TestRawSocketOfNode(t *testing.T) {
	t.Parallel()
	onEachNode(t, socketLab, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		for _, pod := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			s := c.serve(t, lab.AllKinds, pod)
			for _, kind := range routedKinds {
				for _, family := range families {
					from := netip.AddrPortFrom(c.Node1.Addr(family), clientPort())
					answer, err := c.Node1.AskRaw(from, s.Frontend(c.Lab, kind, family))
					if err != nil {
						t.Fatal(err)
					}
					expectServer(t, answer, pod)
				}
			}
		}
	})
}

// TestSocketsConnectedBefore connects sockets of the node before there is an agent. Then their packets are translated:
// datagrams, and the SYN that TCP sends again.
func TestSocketsConnectedBefore(t *testing.T) {
	t.Parallel()
	onEachNode(t, socketLab, func(t *testing.T, options lab.Options) {
		c := &cluster{Lab: build(t, options)}
		s := lab.Service{Name: "before", Number: 1, Pods: []*lab.Host{c.Local()[0], c.Remote()[0]}}
		type dialled struct {
			conn *lab.Conn
			err  error
		}
		var datagrams []*lab.Conn
		connections := make(chan dialled, len(families))
		for _, family := range families {
			to := s.Frontend(c.Lab, compile.ClusterIP, family)
			datagrams = append(datagrams, dial(t, c.Node1, compile.UDP, netip.AddrPort{}, to))
			go func() {
				conn, err := c.Node1.DialWithin(time.Minute, compile.TCP, netip.AddrPort{}, to)
				connections <- dialled{conn, err}
			}()
		}
		if err := c.startAgent(c.Node1, socketEdge); err != nil {
			t.Fatal(err)
		}
		c.agent = c.agents[0]
		t.Cleanup(func() { c.explain(t) })
		c.apply(t, s)
		for _, conn := range datagrams {
			expectServer(t, askOn(t, conn), s.Pods...)
		}
		for range families {
			made := <-connections
			if made.err != nil {
				t.Fatal(made.err)
			}
			expectServer(t, askOn(t, made.conn), s.Pods...)
			made.conn.Close()
		}
	})
}

// TestConnectionOfAnotherProxy has netfilter translate a connection of the node, as kube-proxy does, and then no more:
// it cannot go on, and its socket is told at once.
func TestConnectionOfAnotherProxy(t *testing.T) {
	t.Parallel()
	c := own(t, lab.Options{})
	s := c.newService(t, nil, c.Local()[0])
	to := s.Frontend(c.Lab, compile.ClusterIP, compile.IPv4)
	rules := fmt.Sprintf(`
table ip proxy {
	chain output {
		type nat hook output priority -100; policy accept;
		ip daddr %s tcp dport %d dnat to %s:%d
	}
}
`, to.Addr(), to.Port(), s.Pods[0].IPv4, lab.TCPPort)
	if _, err := c.Node1.Run(rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	conn := dial(t, c.Node1, compile.TCP, netip.AddrPort{}, to)
	expectServer(t, askOn(t, conn), s.Pods...)
	c.apply(t, s)
	expectServer(t, askOn(t, conn), s.Pods...)
	if _, err := c.Node1.Run("", "nft", "delete", "table", "ip", "proxy"); err != nil {
		t.Fatal(err)
	}
	if answer, err := conn.Ask(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %+v, %v, want %v", answer, err, syscall.ECONNRESET)
	}
	ask(t, c.Node1, compile.TCP, to, s.Pods...)
}

// TestPacketsOfNodeRefused refuses the node what it cannot have: P06, C05. What policy keeps from it is dropped: P05.
func TestPacketsOfNodeRefused(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := shared(t, options)
		onEachRouted(t, c, c.serve(t, lab.AllKinds), func(t *testing.T, protocol compile.Protocol, to netip.AddrPort) {
			expectRefused(t, c.Node1, protocol, to)
		})
		local := c.changed(t, internalLocal, c.Remote()...)
		c.waitBackends(t, c.Node1, local, compile.LoadBalancer, lab.Inside, local.Pods...)
		c.waitBackends(t, c.Node1, local, compile.ClusterIP, lab.Inside)
		for _, family := range families {
			for _, protocol := range protocols {
				to := local.Frontend(c.Lab, compile.ClusterIP, family)
				expectSilence(t, c.Node1, protocol, to)
				expectRefused(t, c.Node1, protocol, netip.AddrPortFrom(to.Addr(), lab.ServicePort+1))
			}
		}
	})
}

// TestPacketsOfNodeDropped sends a ClusterIP what is not translated: it does not leave, and is counted.
func TestPacketsOfNodeDropped(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := own(t, options)
		s := c.serve(t, lab.AllKinds, c.Local()[0])
		before := counters(t, c)
		for _, family := range families {
			for _, protocol := range []string{"253", "254"} { // for experiments
				to := s.Frontend(c.Lab, compile.ClusterIP, family).Addr()
				err := c.Node1.SendRaw(protocol, c.Node1.Addr(family), to, make([]byte, 64))
				if err != nil && !errors.Is(err, syscall.ENOBUFS) { // how the kernel tells of the drop, now and then
					t.Fatal(err)
				}
			}
		}
		if dropped := counters(t, c).DropHostUntranslated - before.DropHostUntranslated; dropped != 4 {
			t.Errorf("%d packets are counted, want 4", dropped)
		}
	})
}

// TestOnePortTwoFrontendsOfNode lets processes of the node use one port toward several frontends of one backend.
func TestOnePortTwoFrontendsOfNode(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := shared(t, options)
		for _, pod := range []*lab.Host{c.Local()[0], c.Remote()[0]} {
			s, other := c.serve(t, lab.AllKinds, pod), c.serve(t, nil, pod)
			for _, family := range families {
				for _, protocol := range protocols {
					testOnePort(t, c.Node1, protocol, c.Node1.Addr(family), []target{
						{s.Frontend(c.Lab, compile.ClusterIP, family), pod},
						{s.Frontend(c.Lab, compile.LoadBalancer, family), pod},
						{other.Frontend(c.Lab, compile.ClusterIP, family), pod},
					})
				}
			}
		}
	})
}
