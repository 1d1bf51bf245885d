package e2e_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/e2e"
	"github.com/weir-lb/weir/tests/lab"
)

// cutOff is the account whose token the agent has that is cut off.
const cutOff = "weir-cut-off"

// TestHoursWithoutServer is what hours without the API server bring, in seconds. One node cannot reach it while the others can:
// Services come and go, the history is forgotten, and the agent's token expires and is replaced. What was known last is served
// meanwhile, and load balancers hear that the node is well; then the agent makes good what it has missed.
func TestHoursWithoutServer(t *testing.T) {
	healthy(t)
	agent, newToken := agentOfPod(t)
	eventually(t, agent.Healthy)
	services := cluster.Admin.CoreV1().Services("default")
	before, err := services.Create(t.Context(), app("before"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	addPod(t, "before", "before", cluster.lab.Web[0])
	addPod(t, "after", "after", cluster.lab.Web[2])
	old := netip.AddrPortFrom(netip.MustParseAddr(before.Spec.ClusterIP), 80)
	answers(t, cluster.lab.Toolbox, compile.TCP, old, cluster.lab.Web[0])

	rejoin := cutOffServer(t, cluster.lab.Node1)
	unhealthy(t, agent, "API server: the server cannot be reached")
	if err := services.Delete(t.Context(), before.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	after := create(t, app("after"))
	newToken()
	if err := cluster.ForgetHistory(); err != nil {
		t.Fatal(err)
	}
	answers(t, cluster.lab.Toolbox, compile.TCP, old, cluster.lab.Web[0])
	says(t, cluster.lab.Node1, "http://127.0.0.1:10256/healthz", `"healthy":true`)

	rejoin()
	answers(t, cluster.lab.Toolbox, compile.TCP, netip.AddrPortFrom(netip.MustParseAddr(after.Spec.ClusterIP), 80), cluster.lab.Web[2])
	silent(t, cluster.lab.Toolbox, old)
	eventually(t, agent.Healthy)
}

// agentOfPod runs an agent in place of the first whose token is in a file. What is returned with it replaces the token, and has the
// one before expire.
func agentOfPod(t *testing.T) (agent *e2e.Agent, newToken func()) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	newToken = func() {
		t.Helper()
		token, err := cluster.NewAccount(t.Context(), cutOff)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	newToken()
	t.Cleanup(func() {
		if err := cluster.DeleteAccount(contextOf(t), cutOff); err != nil {
			t.Error(err)
		}
	})
	kubeconfig, err := cluster.KubeconfigOfPod("pod", file)
	if err != nil {
		t.Fatal(err)
	}
	return instead(t, cluster.agents[0].With(map[string]string{"--kubeconfig": kubeconfig})), newToken
}

// cutOffServer ends a node's connections to the API server, and lets it make no others until it is to be back.
func cutOffServer(t *testing.T, node *lab.Host) (rejoin func()) {
	t.Helper()
	route := func(verb string) error {
		_, err := node.Run("", "ip", "route", verb, "unreachable", cluster.Address().String())
		return err
	}
	if err := cluster.StopServer(); err != nil {
		t.Fatal(err)
	}
	if err := route("add"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = route("del") }) // the test may have done it
	if err := cluster.StartServer(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := route("del"); err != nil {
			t.Fatal(err)
		}
	}
}
