package lab_test

import (
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// TestDetectLocalMode asks the addresses of node1 for a Service with externalTrafficPolicy Local, whose only endpoint is on
// node2. A pod of node2 counts as inside there where detectLocalMode knows its address, and is served; the client does
// not. Without a mode neither is: C03, P03, P09.
func TestDetectLocalMode(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]struct {
		args   []string
		inside bool
	}{
		"ClusterCIDR":         {[]string{"--cluster-cidr", "10.1.0.0/16,fd00:10:1::/48"}, true},
		"InterfaceNamePrefix": {[]string{"--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", "eth1"}, true},
		"none":                {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := own(t, lab.Options{TwoAgents: true, HostServers: true}, append([]string{"--socket-lb", "off"}, mode.args...)...)
			s := c.newService(t, lab.AllKinds, c.Remote()[0])
			s.Change = externalLocal
			c.apply(t, s)
			pod := c.Remote()[1]
			for _, family := range families {
				for _, protocol := range protocols {
					to := s.Frontend(c.Lab, compile.NodePort, family)
					if mode.inside {
						ask(t, pod, protocol, to, s.Pods...)
					} else {
						expectSilence(t, pod, protocol, to)
					}
					expectSilence(t, c.Client, protocol, to)
				}
			}
		})
	}
}
