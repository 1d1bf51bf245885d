package e2e_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/e2e"
)

// TestSocketsLeftAlone: a Pod by its annotation, or all of a Namespace by its label, are left alone by the socket edge and
// served at the pod edge, as soon as they ask for it and for as long.
func TestSocketsLeftAlone(t *testing.T) {
	healthy(t)
	service := create(t, app("left"), cluster.lab.Web[0])
	addPod(t, "toolbox", "toolbox", cluster.lab.Toolbox)
	frontend := e2e.Frontends(service, cluster.lab.Node1, compile.ClusterIP, compile.IPv4)[0]
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])
	servedBySocket(t, frontend, true)
	for _, step := range []struct {
		kind, name, set string
		bySocket        bool
	}{
		{"pod", "toolbox", "annotate weir-lb.io/socket-lb=off", false},
		{"pod", "toolbox", "annotate weir-lb.io/socket-lb-", true},
		{"namespace", "default", "label weir-lb.io/socket-lb=off", false},
		{"pod", "toolbox", "annotate weir-lb.io/socket-lb=on", true},
		{"pod", "toolbox", "annotate weir-lb.io/socket-lb-", false},
		{"namespace", "default", "label weir-lb.io/socket-lb-", true},
	} {
		verb, value, _ := strings.Cut(step.set, " ")
		if _, err := cluster.Kubectl("", verb, step.kind, step.name, value); err != nil {
			t.Fatal(err)
		}
		servedBySocket(t, frontend, step.bySocket)
	}
}

// servedBySocket waits until connections of toolbox have no flow, as those of the socket edge, or one.
func servedBySocket(t *testing.T, frontend netip.AddrPort, want bool) {
	t.Helper()
	eventually(t, func() error {
		conn, err := cluster.lab.Toolbox.Dial(compile.TCP, netip.AddrPort{}, frontend)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Ask(); err != nil {
			return err
		}
		flows, err := cluster.agents[0].CLI("flows", "--client", conn.LocalAddrPort().String())
		if err != nil {
			return err
		}
		if bySocket := !strings.Contains(flows, frontend.String()); bySocket != want {
			return errors.New("it is served at the other edge: " + flows)
		}
		return nil
	})
}
