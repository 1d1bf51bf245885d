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

// uplinkLabs are the labs of a node with two uplinks.
var uplinkLabs = []struct {
	name    string
	options lab.Options
	agent   []string
}{
	{name: "tc"},
	{name: "clsact", agent: []string{"--attach-mode", "clsact"}},
	{name: "xdp", options: lab.Options{RealNICs: true}, agent: xdpNative},
}

// TestUplinks asks from behind a second uplink, while the node's routes to the client lead by the first, which does not
// reach it. Whatever goes to the client leaves by the device that it came by: where the uplink has a table of its own for
// what is sent from the node's address on it, and where it has a default route of a worse metric.
func TestUplinks(t *testing.T) {
	t.Parallel()
	for _, l := range uplinkLabs {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, l.options, func(t *testing.T, options lab.Options) {
				testUplinks(t, own(t, options, l.agent...))
			})
		})
	}
}

func testUplinks(t *testing.T, c *cluster) {
	guest := addUplink(t, c)
	services := map[string]lab.Service{
		"local":  c.serve(t, lab.AllKinds, c.Local()...),
		"remote": c.serve(t, lab.AllKinds, c.Remote()...),
		"nobody": c.serve(t, lab.AllKinds),
	}
	ways := []struct {
		name string
		make func() error
	}{{"by rule", c.RouteByRule}, {"by metric", c.RouteByMetric}}
	for _, way := range ways {
		if err := way.make(); err != nil {
			t.Fatal(err)
		}
		for where, s := range services {
			for _, family := range families {
				t.Run(way.name+"/"+where+"/"+family.String(), func(t *testing.T) {
					for _, to := range frontendsByUplink(c, s, family) {
						if where == "nobody" {
							expectRefusals(t, guest, to)
							continue
						}
						askByUplink(t, guest, to, s)
					}
					if where == "remote" {
						expectTimeExceeded(t, guest, s.Frontend(c.Lab, compile.LoadBalancer, family))
					}
				})
			}
		}
	}
}

// addUplink gives node1 a second uplink, and returns the client behind it.
func addUplink(t *testing.T, c *cluster) *lab.Host {
	t.Helper()
	guest, err := c.AddUplink()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.agent.WaitUplink(); err != nil {
		t.Fatal(err)
	}
	return guest
}

// frontendsByUplink lists what the client asks: the NodePort on the node's addresses on both uplinks, and VIPs.
func frontendsByUplink(c *cluster, s lab.Service, family compile.Family) []netip.AddrPort {
	return []netip.AddrPort{
		netip.AddrPortFrom(c.UplinkAddr(family == compile.IPv6), s.NodePort()),
		s.Frontend(c.Lab, compile.NodePort, family),
		s.Frontend(c.Lab, compile.LoadBalancer, family),
		s.Frontend(c.Lab, compile.ExternalIP, family),
	}
}

func askByUplink(t *testing.T, guest *lab.Host, to netip.AddrPort, s lab.Service) {
	t.Helper()
	for _, protocol := range protocols {
		answer, err := guest.Ask(protocol, netip.AddrPort{}, to)
		if err != nil {
			t.Error(err)
			continue
		}
		expectServer(t, answer, s.Pods...)
	}
	conn, err := guest.Dial(compile.TCP, netip.AddrPort{}, to)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	if err := conn.Exchange(1<<20, 1<<20, 20*time.Second); err != nil {
		t.Errorf("%s: %v", to, err)
	}
}

// expectRefusals expects a reset, and ICMP's port unreachable, which Weir makes.
func expectRefusals(t *testing.T, guest *lab.Host, to netip.AddrPort) {
	t.Helper()
	for _, protocol := range protocols {
		if answer, err := guest.AskWithin(time.Second, protocol, netip.AddrPort{}, to); !isRefused(err) {
			t.Errorf("%s by %s: %v, %v, want a refusal", to, protocol, answer, err)
		}
	}
}

// expectTimeExceeded sends a packet of one hop, whose end the node tells.
func expectTimeExceeded(t *testing.T, guest *lab.Host, to netip.AddrPort) {
	t.Helper()
	family := compile.IPv4
	if to.Addr().Is6() {
		family = compile.IPv6
	}
	conn := dial(t, guest, compile.UDP, netip.AddrPort{}, to)
	set(t, conn, reportAll[family], 1)
	set(t, conn, timeToLive[family], 1)
	if _, err := conn.AskWithin(time.Second); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("%s: a packet with one hop left: got %v, want %v", to, err, syscall.EHOSTUNREACH)
	}
}

// TestPodRules lets what single pods send leave by the second uplink, by a rule for their addresses, or for a mark. Their
// answers go out of the device that the client came by, all the same; what they ask themselves obeys the rules: here a
// backend that nothing but that uplink leads to.
func TestPodRules(t *testing.T) {
	t.Parallel()
	for _, l := range uplinkLabs {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, l.options, func(t *testing.T, options lab.Options) {
				testPodRules(t, own(t, options, l.agent...))
			})
		})
	}
}

func testPodRules(t *testing.T, c *cluster) {
	guest := addUplink(t, c)
	if err := c.RouteByRule(); err != nil {
		t.Fatal(err)
	}
	pod := c.Local()[0]
	local := c.serve(t, lab.AllKinds, pod)
	beyond := c.newService(t, lab.AllKinds)
	beyond.External = []*lab.Host{guest}
	c.apply(t, beyond)
	for name, marked := range map[string]bool{"by address": false, "by mark": true} {
		t.Run(name, func(t *testing.T) {
			undo, err := c.RoutePodByUplink(pod, marked)
			if err != nil {
				t.Fatal(err)
			}
			for _, family := range families {
				for _, to := range frontendsByUplink(c, local, family) {
					askByUplink(t, guest, to, local)
				}
				for _, kind := range frontendKinds[1:] {
					askByUplink(t, c.Client, local.Frontend(c.Lab, kind, family), local)
				}
				for _, kind := range frontendKinds {
					askByUplink(t, pod, beyond.Frontend(c.Lab, kind, family), lab.Service{Pods: beyond.External})
				}
			}
			if err := undo(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
