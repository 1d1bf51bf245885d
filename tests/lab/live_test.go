package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestNodeChangesUnderLoad adds an address and an uplink to a node and takes them away again, while clients ask again
// and again. What comes answers, what goes does not any more, and nobody else notices: N02, N03.
func TestNodeChangesUnderLoad(t *testing.T) {
	t.Parallel()
	for _, l := range uplinkLabs {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			onEachNode(t, l.options, func(t *testing.T, options lab.Options) {
				args := append([]string{"--nodeport-addresses", "192.0.2.0/24,198.18.4.0/24,2001:db8::/32"}, l.agent...)
				testNodeChanges(t, own(t, options, args...))
			})
		})
	}
}

func testNodeChanges(t *testing.T, c *cluster) {
	services := []lab.Service{c.serve(t, lab.AllKinds, c.Local()...), c.serve(t, lab.AllKinds, c.Remote()...)}
	beside := startRequests(t, c, services)
	changeAddress(t, c, services)
	changeUplink(t, c, services)
	beside.stop(t)
}

// changeAddress gives node1 another address toward the client, and one that --nodeport-addresses does not have.
func changeAddress(t *testing.T, c *cluster, services []lab.Service) {
	t.Helper()
	for _, test := range []struct {
		address string
		served  bool
	}{{"192.0.2.77", true}, {"2001:db8:1::77", true}, {"198.18.77.1", false}} {
		address := netip.MustParseAddr(test.address)
		for range 2 { // it may come back
			if err := c.Node1.AddAddress("eth0", address); err != nil {
				t.Fatal(err)
			}
			if test.served {
				waitAnswers(t, c, address, true)
				for _, s := range services {
					for _, protocol := range protocols {
						ask(t, c.Client, protocol, netip.AddrPortFrom(address, s.NodePort()), s.Pods...)
					}
				}
			} else {
				expectNoAnswer(t, c, address, services)
			}
			if err := c.Node1.RemoveAddress("eth0", address); err != nil {
				t.Fatal(err)
			}
			waitAnswers(t, c, address, false)
			expectNoAnswer(t, c, address, services)
		}
	}
}

// expectNoAnswer asks NodePorts on an address that they are not on.
func expectNoAnswer(t *testing.T, c *cluster, address netip.Addr, services []lab.Service) {
	t.Helper()
	for _, s := range services {
		for _, protocol := range protocols {
			to := netip.AddrPortFrom(address, s.NodePort())
			if answer, err := c.Client.AskWithin(200*time.Millisecond, protocol, netip.AddrPort{}, to); err == nil {
				t.Errorf("%s by %s: %s answers", to, protocol, answer.Server)
			}
		}
	}
}

// waitAnswers waits until NodePorts answer on an address of node1, or no longer do.
func waitAnswers(t *testing.T, c *cluster, address netip.Addr, want bool) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		err := c.agent.AnswersOn(address)
		if want || err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		if err == nil {
			return fmt.Errorf("NodePorts still answer on %s", address)
		}
		return nil
	})
}

// changeUplink gives node1 a second uplink, takes it away and gives it again. Flows that came by it are cut off from their
// client; the node sends their answers by the routes that are left.
func changeUplink(t *testing.T, c *cluster, services []lab.Service) {
	t.Helper()
	guest := addUplink(t, c)
	strays := map[compile.Family]func() (int, error){}
	for _, family := range families {
		count, err := c.Client.CountPacketsTo(guest.Addr(family))
		if err != nil {
			t.Fatal(err)
		}
		strays[family] = count
	}
	for round, s := range services {
		if round > 0 {
			if err := c.ConnectUplink(guest); err != nil {
				t.Fatal(err)
			}
			if err := c.agent.WaitUplink(); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.RouteByMetric(); err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, to := range frontendsByUplink(c, s, family) {
				for _, protocol := range protocols {
					askSoon(t, guest, protocol, to, s)
				}
			}
		}
		expectAnswersByRoute(t, c, guest, s, strays)
		for _, family := range families {
			waitAnswers(t, c, c.UplinkAddr(family == compile.IPv6), false)
		}
	}
}

// expectAnswersByRoute takes the uplink away while backends send by it. What they send on, which their client does not
// get, leaves by the default route, to the client host.
func expectAnswersByRoute(t *testing.T, c *cluster, guest *lab.Host, s lab.Service, strays map[compile.Family]func() (int, error)) {
	t.Helper()
	var ended sync.WaitGroup
	before := map[compile.Family]int{}
	for _, family := range families {
		conn := dial(t, guest, compile.TCP, netip.AddrPort{}, s.Frontend(c.Lab, compile.LoadBalancer, family))
		ended.Go(func() { _ = conn.Exchange(0, 1<<40, 5*time.Second) }) // it is cut off
		eventually(t, 20*time.Second, func() error {
			if received, err := conn.Received(); err != nil || received == 0 {
				return fmt.Errorf("%d bytes received: %w", received, err)
			}
			return nil
		})
		seen, err := strays[family]()
		if err != nil {
			t.Fatal(err)
		}
		before[family] = seen
	}
	if err := c.DisconnectUplink(); err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		eventually(t, 20*time.Second, func() error {
			if after, err := strays[family](); err != nil || after == before[family] {
				return fmt.Errorf("of answers to %s by the lost uplink nothing leaves by the route that is left: %w", guest.Addr(family), err)
			}
			return nil
		})
	}
	ended.Wait()
}

// askSoon asks, and asks again for a moment: the routes of a new uplink, and its router, are known a little later.
func askSoon(t *testing.T, guest *lab.Host, protocol compile.Protocol, to netip.AddrPort, s lab.Service) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		answer, err := guest.AskWithin(500*time.Millisecond, protocol, netip.AddrPort{}, to)
		if err == nil {
			expectServer(t, answer, s.Pods...)
		}
		return err
	})
}

// loadPause keeps a client from asking more often than there are source ports toward a backend: a datagram that is answered
// has one for half a minute.
const loadPause = 50 * time.Millisecond

// requests are clients that ask again and again.
type requests struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	asked  int
	failed []error
}

// startRequests has the client and a pod ask every frontend again and again: on new connections, and on one that stays.
func startRequests(t *testing.T, c *cluster, services []lab.Service) *requests {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &requests{cancel: cancel}
	t.Cleanup(cancel)
	for _, from := range []*lab.Host{c.Client, c.Toolbox} {
		for _, s := range services {
			for _, family := range families {
				to := s.Frontend(c.Lab, compile.LoadBalancer, family)
				stays := dial(t, from, compile.TCP, netip.AddrPort{}, to)
				l.done.Go(func() {
					for ctx.Err() == nil {
						time.Sleep(loadPause)
						l.note(stays.Ask())
						for _, kind := range frontendKinds {
							for _, protocol := range protocols {
								l.note(from.Ask(protocol, netip.AddrPort{}, s.Frontend(c.Lab, kind, family)))
							}
						}
					}
				})
			}
		}
	}
	return l
}

func (l *requests) note(_ lab.Answer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	if err != nil {
		l.failed = append(l.failed, err)
	}
}

// stop ends the load, and fails the test where a request has failed.
func (l *requests) stop(t *testing.T) {
	t.Helper()
	l.cancel()
	l.done.Wait()
	t.Logf("%d requests beside", l.asked)
	if len(l.failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(l.failed), l.asked, l.failed[0])
	}
	if l.asked < 100 {
		t.Errorf("only %d requests were made", l.asked)
	}
}
