package lab_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weir-lb/weir/tests/lab"
)

// TestForeignPolicy puts somebody else's stateful policy on the devices of a pod that is a client, of a pod that is a
// server, and of the node: it must see both directions of every connection under the same addresses, wherever it
// stands and whoever came first.
func TestForeignPolicy(t *testing.T) {
	t.Parallel()
	for _, hook := range []lab.Hook{lab.TCX, lab.Clsact} {
		for _, when := range []string{"before the agent", "behind it", "ahead of it"} {
			t.Run(fmt.Sprintf("%s/%s", hook, when), func(t *testing.T) {
				t.Parallel()
				onEachNode(t, lab.Options{}, func(t *testing.T, options lab.Options) {
					testForeignPolicy(t, options, hook, when)
				})
			})
		}
	}
}

func testForeignPolicy(t *testing.T, options lab.Options, hook lab.Hook, when string) {
	l := build(t, options)
	web1 := l.Local()[0]
	agent, err := l.NewAgent(weirBinary)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Lab: l, agent: agent, agents: []*lab.Agent{agent}}
	t.Cleanup(func() { c.explain(t) })
	attach := func() {
		for device, opensAtEntry := range map[string]bool{"calitoolbox": true, "caliweb1": false, "eth0": true} {
			attachPolicy(t, c, lab.PolicySpec{Device: device, Hook: hook, Before: when == "ahead of it", OpensAtEntry: opensAtEntry})
		}
	}
	if when == "before the agent" {
		attach()
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	s := c.serve(t, lab.AllKinds, web1)
	if when != "before the agent" {
		attach()
	}
	eventually(t, 5*time.Second, func() error { return askEverybody(c, s) })
	for range 3 {
		if err := askEverybody(c, s); err != nil {
			t.Error(err)
		}
	}
}

// askEverybody asks every frontend from a pod and from outside, by both protocols and families.
func askEverybody(c *cluster, s lab.Service) error {
	for _, kind := range frontendKinds {
		for _, family := range families {
			for _, protocol := range protocols {
				for _, from := range []*lab.Host{c.Toolbox, c.Client} {
					if _, err := from.AskWithin(time.Second, protocol, netip.AddrPort{}, s.Frontend(c.Lab, kind, family)); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// attachPolicy attaches a policy to a device of node1 until the test ends. The device is touched afterwards: the agent
// looks at the order of programs when a device changes.
func attachPolicy(t *testing.T, c *cluster, spec lab.PolicySpec) {
	t.Helper()
	policy, err := c.Node1.AttachPolicy(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		flows, err := policy.Flows()
		if err != nil || flows == 0 {
			t.Errorf("the policy on %s saw %d flows begin (%v): it proves nothing", spec.Device, flows, err)
		}
		if t.Failed() {
			dropped, err := policy.Dropped()
			t.Logf("the policy on %s dropped (%v): %q", spec.Device, err, dropped)
		}
		if err := policy.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Node1.Touch(spec.Device); err != nil {
		t.Fatal(err)
	}
}
