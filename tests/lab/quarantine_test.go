package lab_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestQuarantine: when three clients have found a backend silent, further ones are not sent there, and lose no second;
// when it answers again it is let back.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := own(t, options, "--quarantine", "4s")
		silent, serves := c.Remote()[0], c.Local()[0]
		s := c.serve(t, lab.AllKinds, silent, serves)
		vip := s.Frontend(c.Lab, compile.LoadBalancer, compile.IPv4)
		second := netip.MustParseAddr("192.0.2.11") // of the client
		recovers := fail(t, silent, lab.Silent)
		eventually(t, 20*time.Second, func() error {
			askers := []asker{{from: c.Client, to: vip}, {from: c.Toolbox, to: vip}}
			for _, conn := range connectAtOnce(t, askers, 4) {
				expectServer(t, askOn(t, conn), serves)
			}
			expectServer(t, askOn(t, dial(t, c.Client, compile.TCP, netip.AddrPortFrom(second, 0), vip)), serves)
			return expectQuarantined(c, silent)
		})
		for _, conn := range connectAtOnce(t, []asker{{from: c.Client, to: vip}}, 16) {
			if answer := askOn(t, conn); answer.Retransmits != 0 {
				t.Errorf("a client had to send %d segments again", answer.Retransmits)
			}
		}
		recovers()
		eventually(t, 20*time.Second, func() error {
			if answer := askOn(t, dial(t, c.Client, compile.TCP, netip.AddrPort{}, vip)); answer.Server != silent.Role {
				return fmt.Errorf("%s answers", answer.Server)
			}
			return nil
		})
	})
}

// expectQuarantined wants weir status to name a backend.
func expectQuarantined(c *cluster, backend *lab.Host) error {
	output, err := c.agent.CLI("status")
	if err == nil && !strings.Contains(output, fmt.Sprintf("%s:%d ", backend.IPv4, lab.TCPPort)) {
		err = fmt.Errorf("%s is in no quarantine:\n%s", backend.Role, output)
	}
	return err
}

// TestDeniedClient: one client that every backend's policy denies keeps no other client from any of them.
func TestDeniedClient(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
		c := own(t, options)
		s := c.serve(t, lab.AllKinds, c.Remote()[0], c.Local()[0])
		vip := s.Frontend(c.Lab, compile.LoadBalancer, compile.IPv4)
		for _, pod := range s.Pods {
			deny(t, pod, c.Toolbox)
		}
		for range 3 {
			if conn, err := c.Toolbox.Dial(compile.TCP, netip.AddrPort{}, vip); err == nil {
				conn.Close()
				t.Fatal("the policy denies nothing")
			}
			answered := make(map[string]bool)
			for _, conn := range connectAtOnce(t, []asker{{from: c.Client, to: vip}}, 16) {
				answered[askOn(t, conn).Server] = true
			}
			if len(answered) != len(s.Pods) {
				t.Errorf("other clients are served by %v alone", answered)
			}
		}
		if sum := counters(t, c); sum.FlowRetried == 0 || sum.BackendQuarantined != 0 {
			t.Errorf("%d SYNs were tried elsewhere, %d backends quarantined", sum.FlowRetried, sum.BackendQuarantined)
		}
	})
}

// deny makes a pod ignore another one.
func deny(t *testing.T, pod, client *lab.Host) {
	t.Helper()
	rules := fmt.Sprintf("table inet denies { chain entry { type filter hook input priority 0; ip saddr %s drop; }; }", client.IPv4)
	if _, err := pod.Run(rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}
