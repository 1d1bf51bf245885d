package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/e2e"
	"github.com/weir-lb/weir/tests/lab"
)

// loadPause is between two requests: closed connections keep their source ports for half a minute.
const loadPause = 4 * time.Millisecond

// load asks a frontend, each time on a new connection, until its end.
type load struct {
	cancel   context.CancelFunc
	done     sync.WaitGroup
	requests int
	failed   []error
}

func startLoad(t *testing.T, from *lab.Host, frontend netip.AddrPort) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel}
	l.done.Go(func() {
		for ctx.Err() == nil {
			if _, err := from.Ask(compile.TCP, netip.AddrPort{}, frontend); err != nil {
				l.failed = append(l.failed, err)
			}
			l.requests++
			time.Sleep(loadPause)
		}
	})
	t.Cleanup(func() { cancel(); l.done.Wait() })
	return l
}

// end ends the load and fails the test if a request has failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.cancel()
	l.done.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(l.failed), l.requests, l.failed[0])
	}
	if l.requests < 10 {
		t.Errorf("no more than %d requests were made: that proves nothing", l.requests)
	}
	t.Logf("%d requests", l.requests)
}

// TestRollingUpdate replaces the pods of a Service one by one, again and again, under load: no request fails.
func TestRollingUpdate(t *testing.T) {
	healthy(t)
	service := app("rolling")
	service.Spec.Type = "NodePort"
	service = create(t, service, cluster.lab.Web[0], cluster.lab.Web[2])
	inside := e2e.Frontends(service, cluster.lab.Node1, compile.ClusterIP, compile.IPv4)[0]
	outside := e2e.Frontends(service, cluster.lab.Node1, compile.NodePort, compile.IPv6)[0]
	answers(t, cluster.lab.Toolbox, compile.TCP, inside, cluster.lab.Web[0], cluster.lab.Web[2])
	answers(t, cluster.lab.Client, compile.TCP, outside, cluster.lab.Web[0], cluster.lab.Web[2])

	loads := []*load{startLoad(t, cluster.lab.Toolbox, inside), startLoad(t, cluster.lab.Client, outside)}
	current := []string{"rolling-web1", "rolling-web3"}
	for round := range 8 {
		pod := cluster.lab.Web[[]int{1, 3, 0, 2}[round%4]]
		name := fmt.Sprintf("rolling-%d", round)
		addPod(t, name, "rolling", pod)
		waitBackend(t, inside, pod)
		if err := cluster.DeletePod(t.Context(), current[0]); err != nil {
			t.Fatal(err)
		}
		current = append(current[1:], name)
		waitGoneBackend(t, inside, []int{0, 2, 1, 3}[round%4])
	}
	for _, l := range loads {
		l.end(t)
	}
}

// waitBackend waits until a pod answers.
func waitBackend(t *testing.T, frontend netip.AddrPort, pod *lab.Host) {
	t.Helper()
	eventually(t, func() error {
		answer, err := cluster.lab.Toolbox.Ask(compile.TCP, netip.AddrPort{}, frontend)
		if err == nil && answer.Server != pod.Role {
			err = fmt.Errorf("%s answers, not %s yet", answer.Server, pod.Role)
		}
		return err
	})
}

// waitGoneBackend waits until a pod does not answer any more.
func waitGoneBackend(t *testing.T, frontend netip.AddrPort, index int) {
	t.Helper()
	eventually(t, func() error {
		for range 20 {
			answer, err := cluster.lab.Toolbox.Ask(compile.TCP, netip.AddrPort{}, frontend)
			if err != nil {
				return err
			}
			if answer.Server == cluster.lab.Web[index].Role {
				return errors.New(answer.Server + " still answers")
			}
		}
		return nil
	})
}

// TestServerOutage: without the API server, what it said last is served, also after a restart of the agent, which
// writes nothing; what happens meanwhile is caught up with.
func TestServerOutage(t *testing.T) {
	healthy(t)
	service := create(t, app("steady"), cluster.lab.Web[0], cluster.lab.Web[2])
	frontend := netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), 80)
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0], cluster.lab.Web[2])
	agent := cluster.agents[0]
	traffic := startLoad(t, cluster.lab.Toolbox, frontend)

	if err := cluster.StopServer(); err != nil {
		t.Fatal(err)
	}
	unhealthy(t, agent, "API server: the server cannot be reached")
	if err := errors.Join(agent.Kill(), agent.Start()); err != nil {
		t.Fatal(err)
	}
	unhealthy(t, agent, "API server: the server cannot be reached")
	status, err := agent.Status()
	if err != nil || status.Agent.Sync.Writes != 0 {
		t.Errorf("the agent has written %d times while it knows nothing (%v)", status.Agent.Sync.Writes, err)
	}
	if err := cluster.StartServer(); err != nil {
		t.Fatal(err)
	}
	addPod(t, "steady-more", "steady", cluster.lab.Web[1])
	healthy(t)
	waitBackend(t, frontend, cluster.lab.Web[1])
	traffic.end(t)
}

// unhealthy waits until an agent says for a reason that it is not.
func unhealthy(t *testing.T, agent *e2e.Agent, reason string) {
	t.Helper()
	eventually(t, func() error {
		status, err := agent.Status()
		if err == nil && !strings.Contains(strings.Join(status.Reasons, "\n"), reason) {
			err = fmt.Errorf("reasons: %q", status.Reasons)
		}
		return err
	})
}

// TestPermissionMissing names the verb and the resource that the agent may not use, and goes on when it may.
func TestPermissionMissing(t *testing.T) {
	healthy(t)
	agent := cluster.agents[0]
	service := create(t, app("permitted"), cluster.lab.Web[0])
	frontend := netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), 80)
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])

	roles := cluster.Admin.RbacV1().ClusterRoles()
	role, err := roles.Get(t.Context(), "weir", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	whole := role.DeepCopy()
	for i := range role.Rules {
		if role.Rules[i].Resources[0] == "endpointslices" {
			role.Rules[i].Verbs = []string{"get"}
		}
	}
	if role, err = roles.Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(agent.Stop(), agent.Start()); err != nil {
		t.Fatal(err)
	}
	unhealthy(t, agent, "not allowed to list endpointslices.discovery.k8s.io")
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])
	whole.ResourceVersion = role.ResourceVersion
	if _, err := roles.Update(t.Context(), whole, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	healthy(t)
}

// TestAPIServerEndpoints has an agent reach the API server whose kubeconfig names the ClusterIP of default/kubernetes, which
// nobody serves before the agent does: the server's own addresses are given to it.
func TestAPIServerEndpoints(t *testing.T) {
	healthy(t)
	token, err := cluster.AgentToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := cluster.Kubeconfig("bootstrap", token, "https://10.96.0.1:443")
	if err != nil {
		t.Fatal(err)
	}
	server, err := url.Parse(cluster.URL())
	if err != nil {
		t.Fatal(err)
	}
	agent := instead(t, cluster.agents[0].With(map[string]string{"--kubeconfig": kubeconfig}, "--apiserver-endpoints", server.Host))
	eventually(t, agent.Healthy)
	service := create(t, app("bootstrapped"), cluster.lab.Web[0])
	frontend := netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), 80)
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])
}

// TestHostnameMismatch: an agent that goes by another name says which Node this machine is.
func TestHostnameMismatch(t *testing.T) {
	healthy(t)
	agent := instead(t, cluster.agents[0].With(map[string]string{"--node-name": "ip-192-0-2-1"}))
	eventually(t, func() error {
		status, err := agent.Status()
		if err != nil {
			return err
		}
		for _, problem := range status.Agent.Problems {
			if problem.Object == "Node ip-192-0-2-1" && problem.Reason == "NodeNotFound" && strings.Contains(problem.Message, "use --node-name node1") {
				return nil
			}
		}
		return fmt.Errorf("the problems are %+v", status.Agent.Problems)
	})
}

// instead runs another agent in place of the first one, for the time of the test. It begins with nothing.
func instead(t *testing.T, other *e2e.Agent) *e2e.Agent {
	t.Helper()
	first := cluster.agents[0]
	t.Cleanup(func() {
		if err := errors.Join(other.Stop(), first.Start()); err != nil {
			t.Error(err)
		}
	})
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.CLI("cleanup"); err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	return other
}

// TestNodeGone says that there is no Node of the agent's name, until there is.
func TestNodeGone(t *testing.T) {
	healthy(t)
	nodes := cluster.Admin.CoreV1().Nodes()
	node, err := nodes.Get(t.Context(), "node2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes.Delete(t.Context(), node.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	reported := func() bool {
		status, err := cluster.agents[1].Status()
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range status.Agent.Problems {
			if problem.Object == "Node node2" && problem.Reason == "NodeNotFound" {
				return true
			}
		}
		return false
	}
	eventually(t, func() error {
		if !reported() {
			return errors.New("the missing Node is not reported")
		}
		return nil
	})
	if _, err := cluster.AddNodes(t.Context(), cluster.lab.Node2); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if reported() {
			return errors.New("the Node is there, and still reported")
		}
		return nil
	})
}

// TestManyServices creates and deletes 200 Services in a loop: what they had is given back, and no request to another one
// fails meanwhile.
func TestManyServices(t *testing.T) {
	healthy(t)
	steady := create(t, app("steady-beside"), cluster.lab.Web[0], cluster.lab.Web[2])
	frontend := netip.AddrPortFrom(netip.MustParseAddr(steady.Spec.ClusterIP), 80)
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0], cluster.lab.Web[2])
	traffic := startLoad(t, cluster.lab.Toolbox, frontend)
	services := cluster.Admin.CoreV1().Services("default")
	frontends := func() int {
		status, err := cluster.agents[0].Status()
		if err != nil {
			t.Fatal(err)
		}
		return status.Agent.Sync.Frontends
	}
	before := frontends()
	count := func(want int) {
		t.Helper()
		eventually(t, func() error {
			if got := frontends(); got != want {
				return fmt.Errorf("%d frontends, want %d", got, want)
			}
			return nil
		})
	}
	const batch = 100
	for round := range 2 {
		for i := range batch {
			if _, err := services.Create(t.Context(), app(fmt.Sprintf("many-%d", i)), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if round == 0 {
			count(before + 4*batch) // two families, two protocols
		}
		for i := range batch {
			if err := services.Delete(t.Context(), fmt.Sprintf("many-%d", i), metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	count(before)
	traffic.end(t)
}

// TestShippedManifests: the DaemonSet runs with the capabilities that the agents here have.
func TestShippedManifests(t *testing.T) {
	explain(t)
	set, err := cluster.Admin.AppsV1().DaemonSets("kube-system").Get(t.Context(), "weir", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var shipped []string
	for _, capability := range set.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
		shipped = append(shipped, strings.ToLower(string(capability)))
	}
	if strings.Join(shipped, " ") != strings.Join(e2e.Capabilities, " ") {
		t.Errorf("the DaemonSet has capabilities %v, the tests' agents %v", shipped, e2e.Capabilities)
	}
}
