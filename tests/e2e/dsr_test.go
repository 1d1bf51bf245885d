package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
	"github.com/weir-lb/weir/tests/e2e"
	"github.com/weir-lb/weir/tests/lab"
)

// TestDSRMembers: nodes say by an annotation where their tunnels come from, and heed those of the others. One that may not
// write it sends no tunnels; one that takes part no more is sent none, and removes what it has said.
func TestDSRMembers(t *testing.T) {
	healthy(t)
	service := app("direct")
	service.Spec.Type = corev1.ServiceTypeNodePort
	service = create(t, service, cluster.lab.Web...)
	here, there := cluster.lab.Web[:2], cluster.lab.Remote()
	first, second := takePart(t, cluster.agents[0]), takePart(t, cluster.agents[1])
	for _, agent := range []*e2e.Agent{first, second} {
		problem(t, agent, "not allowed to patch nodes")
		annotated(t, agent, nil)
	}
	tunnels(t, first, service, nil)

	permitPatch(t)
	annotated(t, first, cluster.lab.Node1)
	annotated(t, second, cluster.lab.Node2)
	tunnels(t, first, service, there)
	tunnels(t, second, service, here)
	taken(t, first, cluster.lab.Node2, here)
	taken(t, second, cluster.lab.Node1, there)
	eventually(t, func() error { return errors.Join(first.Healthy(), second.Healthy()) })

	// Somebody removes the annotation: it is written again.
	if _, err := cluster.Kubectl("", "annotate", "node", second.Node, compile.AnnotationDSR+"-"); err != nil {
		t.Fatal(err)
	}
	annotated(t, second, cluster.lab.Node2)

	if err := errors.Join(second.Stop(), cluster.agents[1].Start()); err != nil {
		t.Fatal(err)
	}
	annotated(t, second, nil)
	tunnels(t, first, service, nil)
	taken(t, second, nil, nil)
	for _, family := range families {
		nodePort := e2e.Frontends(service, cluster.lab.Node1, compile.NodePort, family)[0]
		answers(t, cluster.lab.Client, compile.TCP, nodePort, cluster.lab.Web...)
	}
}

// takePart starts an agent anew, with DSR for the time of the test.
func takePart(t *testing.T, agent *e2e.Agent) *e2e.Agent {
	t.Helper()
	direct := agent.With(nil, "--forward", "dsr")
	t.Cleanup(func() {
		stopped := errors.Join(direct.Stop(), agent.Stop())
		// The agent may not be permitted to any more.
		_, removed := cluster.Kubectl("", "annotate", "node", direct.Node, compile.AnnotationDSR+"-")
		if err := errors.Join(stopped, removed, agent.Start()); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(agent.Stop(), direct.Start()); err != nil {
		t.Fatal(err)
	}
	eventually(t, direct.Healthy)
	return direct
}

// permitPatch lets the agents patch Nodes for the time of the test, as deploy/kustomize/dsr does.
func permitPatch(t *testing.T) {
	t.Helper()
	change := func(change func([]rbacv1.PolicyRule) []rbacv1.PolicyRule) error {
		roles := cluster.Admin.RbacV1().ClusterRoles()
		role, err := roles.Get(contextOf(t), "weir", metav1.GetOptions{})
		if err != nil {
			return err
		}
		role.Rules = change(role.Rules)
		_, err = roles.Update(contextOf(t), role, metav1.UpdateOptions{})
		return err
	}
	permission := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"patch"}}
	t.Cleanup(func() {
		if err := change(func(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule { return rules[:len(rules)-1] }); err != nil {
			t.Error(err)
		}
	})
	if err := change(func(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule { return append(rules, permission) }); err != nil {
		t.Fatal(err)
	}
}

// problem waits until an agent tells of a problem.
func problem(t *testing.T, agent *e2e.Agent, words string) {
	t.Helper()
	eventually(t, func() error {
		status, err := agent.Status()
		if err != nil {
			return err
		}
		for _, problem := range status.Agent.Problems {
			if strings.Contains(problem.Message, words) {
				return nil
			}
		}
		return fmt.Errorf("the problems are %+v", status.Agent.Problems)
	})
}

// annotated waits until the Node of an agent says that tunnels come from a host's addresses; nil: it says nothing.
func annotated(t *testing.T, agent *e2e.Agent, host *lab.Host) {
	t.Helper()
	eventually(t, func() error {
		node, err := cluster.Admin.CoreV1().Nodes().Get(t.Context(), agent.Node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		value, there := node.Annotations[compile.AnnotationDSR]
		if host == nil && there {
			return fmt.Errorf("%s still says %q", agent.Node, value)
		}
		if host == nil {
			return nil
		}
		for _, address := range []netip.Addr{host.IPv4, host.IPv6} {
			if !slices.Contains(strings.Split(value, ","), address.String()) {
				return fmt.Errorf("%s says %q, without %s", agent.Node, value, address)
			}
		}
		return nil
	})
}

// tunnels waits until those pods, and no others, are reached by tunnel.
func tunnels(t *testing.T, agent *e2e.Agent, service *corev1.Service, pods []*lab.Host) {
	t.Helper()
	want := map[netip.Addr]bool{}
	for _, pod := range pods {
		want[pod.IPv4], want[pod.IPv6] = true, true
	}
	eventually(t, func() error {
		output, err := agent.CLI("services", service.Name, "--interval", "0", "-o", "json")
		if err != nil {
			return err
		}
		var services []struct {
			Backends []struct {
				Address netip.AddrPort
				Tunnel  bool
			}
		}
		if err := json.Unmarshal([]byte(output), &services); err != nil {
			return err
		}
		for _, service := range services {
			for _, backend := range service.Backends {
				if backend.Tunnel != want[backend.Address.Addr()] {
					return fmt.Errorf("%s: %s by tunnel: %v", agent.Node, backend.Address, backend.Tunnel)
				}
			}
		}
		return nil
	})
}

// taken waits until an agent's maps say that tunnels from another host, and no others, lead to these pods; nil: none do.
func taken(t *testing.T, agent *e2e.Agent, from *lab.Host, to []*lab.Host) {
	t.Helper()
	set, err := maps.Open(filepath.Join(agent.BPFFS, "weir"))
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	want := map[netip.Addr]bool{}
	for _, pod := range to {
		want[pod.IPv4], want[pod.IPv6] = true, true
	}
	eventually(t, func() error {
		sources, targets := map[netip.Addr]bool{}, map[netip.Addr]bool{}
		err := errors.Join(
			maps.EachKey(set.TunnelSources, func(key maps.Address) { sources[key.Addr()] = true }),
			maps.EachKey(set.TunnelTargets, func(key maps.TunnelTarget) { targets[key.Address.Addr()] = true }),
		)
		switch {
		case err != nil:
			return err
		case from == nil && len(sources) > 0, from != nil && !(sources[from.IPv4] && sources[from.IPv6]):
			return fmt.Errorf("%s takes tunnels from %v", agent.Node, sources)
		}
		for address := range want {
			if !targets[address] {
				return fmt.Errorf("%s: no tunnel leads to %s: %v", agent.Node, address, targets)
			}
		}
		for _, pod := range cluster.lab.Web {
			if targets[pod.IPv4] && !want[pod.IPv4] {
				return fmt.Errorf("%s: a tunnel leads to %s", agent.Node, pod.IPv4)
			}
		}
		return nil
	})
}
