package lab_test

import (
	"fmt"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// socketEdge makes agents translate the sockets of all processes of their nodes.
var socketEdge = []string{"--socket-lb", "all"}

// TestProcessesOfNodes asks every kind of frontend from a process of each node and from pods, whose sockets are
// translated: C01. A backend elsewhere sees the client's own address, whoever the client is: C06.
func TestProcessesOfNodes(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true, HostServers: true, Cgroups: true}, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		s := c.serve(t, lab.AllKinds, c.Local()[0], c.Remote()[0], c.Node1, c.Node2)
		for _, from := range []*lab.Host{c.Node1, c.Node2, c.Toolbox, c.Remote()[1]} {
			for _, kind := range frontendKinds {
				for _, family := range families {
					for _, protocol := range protocols {
						t.Run(fmt.Sprintf("%s/%s/%s/%s", from.Role, kind, family, protocol), func(t *testing.T) {
							for range 4 {
								ask(t, from, protocol, s.Frontend(c.Lab, kind, family), s.Pods...)
							}
						})
					}
				}
			}
		}
		for _, from := range []*lab.Host{c.Toolbox, c.Remote()[1]} {
			pods := c.serve(t, nil, c.Local()[0], c.Remote()[0])
			for _, family := range families {
				answer := ask(t, from, compile.TCP, pods.Frontend(c.Lab, compile.ClusterIP, family), pods.Pods...)
				if answer.Client.Addr() != from.Addr(family) {
					t.Errorf("%s sees %s, want the pod's own address %s: C06", answer.Server, answer.Client, from.Addr(family))
				}
			}
		}
	})
}

// TestProcessesReachThemselves has a pod and a process of the node ask services that they alone serve: C04, the variant of
// pods with host networking too.
func TestProcessesReachThemselves(t *testing.T) {
	t.Parallel()
	onEachNode(t, lab.Options{TwoAgents: true, HostServers: true, Cgroups: true}, func(t *testing.T, options lab.Options) {
		c := shared(t, options, socketEdge...)
		for _, host := range []*lab.Host{c.Local()[0], c.Node1} {
			s := c.serve(t, lab.AllKinds, host)
			for _, kind := range frontendKinds {
				for _, family := range families {
					for _, protocol := range protocols {
						t.Run(fmt.Sprintf("%s/%s/%s/%s", host.Role, kind, family, protocol), func(t *testing.T) {
							ask(t, host, protocol, s.Frontend(c.Lab, kind, family), host)
						})
					}
				}
			}
		}
	})
}
