package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/e2e"
	"github.com/weir-lb/weir/tests/lab"
)

// kept is a connection that lasts.
type kept struct {
	*lab.Conn
	name   string
	server string // who answers
}

// TestMigration does what docs/migrate.md says, beside the real kube-proxy and under load: no request fails and no
// connection breaks while Weir takes its place.
func TestMigration(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) { migrate(t, mode) })
	}
}

func migrate(t *testing.T, mode string) {
	healthy(t)
	agent := cluster.agents[0]
	forgetSoon(t, cluster.lab.Node1)
	service := createMoving(t)
	proxy := startKubeProxy(t, agent, mode)
	routes := routesTo(service)
	for _, r := range routes {
		answers(t, r.from, compile.TCP, r.to, cluster.lab.Web[0], cluster.lab.Web[2])
	}
	connections := keepOpen(t, routes)
	var loads []*load
	for _, r := range routes {
		loads = append(loads, startLoad(t, r.from, r.to))
	}

	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, agent.Healthy)
	alive(t, connections, "Weir has started")
	byWeir(t, agent, routes)
	tells(t, agent, "status", "kube-proxy: its rules are still there")
	if output, err := agent.CLI("cleanup", "--kube-proxy"); err == nil || !strings.Contains(err.Error(), "kube-proxy is running") {
		t.Errorf("its rules are removed while it runs: %s (%v)", output, err)
	}

	if err := proxy.Stop(); err != nil {
		t.Fatal(err)
	}
	alive(t, connections, "kube-proxy has stopped")
	output, err := agent.CLI("cleanup", "--kube-proxy")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cleanup: %s", output)
	alive(t, connections, "its rules are gone")
	noRules(t)
	tells(t, agent, "status", "kube-proxy: table inet weir-keep is there for")
	for _, port := range []string{"10249/proxyMode", "10256/healthz"} { // they were kube-proxy's
		eventually(t, func() error {
			_, err := get(cluster.lab.Node1, "http://127.0.0.1:"+port)
			return err
		})
	}
	for _, l := range loads {
		l.end(t)
	}
	alive(t, connections, "the load has ended")
	for _, c := range connections {
		if err := c.Abort(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, func() error {
		rules, err := cluster.lab.Node1.Run("", "nft", "list", "tables")
		if err == nil && strings.Contains(rules, "weir-keep") {
			err = errors.New("the table weir-keep is still there")
		}
		return err
	})
	eventually(t, agent.Healthy)
}

// forgetSoon has a node's conntrack forget what has ended within seconds.
func forgetSoon(t *testing.T, node *lab.Host) {
	t.Helper()
	for name, value := range map[string]string{"tcp_timeout_time_wait": "1", "tcp_timeout_close": "1"} {
		path := "net/netfilter/nf_conntrack_" + name
		before, err := node.Run("", "cat", "/proc/sys/"+path)
		if err == nil {
			err = node.Sysctl(path, value)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := node.Sysctl(path, strings.TrimSpace(before)); err != nil {
				t.Error(err)
			}
		})
	}
}

// createMoving makes a Service with every kind of frontend, a backend here and one elsewhere.
func createMoving(t *testing.T) *corev1.Service {
	t.Helper()
	service := app("moving")
	service.Spec.Type = corev1.ServiceTypeLoadBalancer
	service = create(t, service, cluster.lab.Web[0], cluster.lab.Web[2])
	service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.7"}, {IP: "2001:db8:3::7"}}
	service, err := cluster.Admin.CoreV1().Services("default").UpdateStatus(t.Context(), service, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return service
}

// startKubeProxy has kube-proxy serve node1 in an agent's place. The agent is there again after the test.
func startKubeProxy(t *testing.T, agent *e2e.Agent, mode string) *e2e.KubeProxy {
	t.Helper()
	proxy, err := cluster.NewKubeProxy(cluster.lab.Node1, mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("kube-proxy:\n%s", proxy.Tail())
		}
		if err := errors.Join(proxy.Stop(), agent.Stop(), agent.Start()); err != nil {
			t.Error(err)
		}
	})
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.CLI("cleanup"); err != nil {
		t.Fatal(err)
	}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, proxy.Healthy)
	return proxy
}

// route is a way to a Service.
type route struct {
	name string
	from *lab.Host
	to   netip.AddrPort
}

// routesTo lists the ways to a Service that lead by node1.
func routesTo(service *corev1.Service) []route {
	var routes []route
	for _, family := range families {
		for _, kind := range []compile.FrontendKind{compile.ClusterIP, compile.NodePort, compile.LoadBalancer} {
			to := e2e.Frontends(service, cluster.lab.Node1, kind, family)[0]
			from := []*lab.Host{cluster.lab.Client}
			if kind == compile.ClusterIP {
				from = []*lab.Host{cluster.lab.Toolbox, cluster.lab.Node1}
			}
			for _, host := range from {
				routes = append(routes, route{fmt.Sprintf("%s to %s %s", host.Role, kind, family), host, to})
			}
		}
	}
	return routes
}

// keepOpen opens connections by each way, until both backends have some.
func keepOpen(t *testing.T, routes []route) []kept {
	t.Helper()
	var all []kept
	for _, r := range routes {
		seen := map[string]bool{}
		for i := 0; i < 4 || len(seen) < 2; i++ {
			if i == 100 {
				t.Fatalf("%s: only %v answer", r.name, seen)
			}
			conn, err := r.from.Dial(compile.TCP, netip.AddrPort{}, r.to)
			if err != nil {
				t.Fatalf("%s: %v", r.name, err)
			}
			t.Cleanup(func() { conn.Close() })
			answer, err := conn.Ask()
			if err != nil {
				t.Fatalf("%s: %v", r.name, err)
			}
			seen[answer.Server] = true
			all = append(all, kept{conn, r.name, answer.Server})
		}
	}
	return all
}

// alive fails the test for each connection that does not go on, to the same server.
func alive(t *testing.T, connections []kept, when string) {
	t.Helper()
	for _, c := range connections {
		answer, err := c.Ask()
		if err == nil && answer.Server != c.server {
			err = fmt.Errorf("%s answers in the place of %s", answer.Server, c.server)
		}
		if err != nil {
			t.Errorf("%s, by %s: %v, after %s", c.name, c.LocalAddrPort(), err, when)
		}
	}
}

// byWeir finds new connections in the agent's flows, or, where the socket edge serves, which has no flows, not in
// conntrack.
func byWeir(t *testing.T, agent *e2e.Agent, routes []route) {
	t.Helper()
	for _, r := range routes {
		conn, err := r.from.Dial(compile.TCP, netip.AddrPort{}, r.to)
		if err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		if _, err := conn.Ask(); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
		flows, err := agent.CLI("flows", "--client", conn.LocalAddrPort().String())
		if err != nil {
			t.Fatal(err)
		}
		tracked, err := cluster.lab.Node1.Run("", "conntrack", "-L", "-p", "tcp", "--orig-port-src", fmt.Sprint(conn.LocalAddrPort().Port()), "-d", r.to.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		// One that has ended may have had the same port.
		bySocket := r.from != cluster.lab.Client
		if strings.Contains(flows, r.to.String()) == bySocket || strings.Contains(tracked, "ESTABLISHED") {
			t.Errorf("%s by %s is not Weir's: %s\nconntrack: %s", r.name, conn.LocalAddrPort(), flows, tracked)
		}
		conn.Close()
	}
}

// tells expects words of a command.
func tells(t *testing.T, agent *e2e.Agent, command, words string) {
	t.Helper()
	output, err := agent.CLI(command)
	if err != nil || !strings.Contains(output, words) {
		t.Errorf("weir %s does not say %q (%v):\n%s", command, words, err, output)
	}
}

// noRules finds nothing of kube-proxy's on node1, but what its connections need.
func noRules(t *testing.T) {
	t.Helper()
	rules, err := cluster.lab.Node1.Run("", "nft", "list", "ruleset")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kube-proxy", "KUBE-SERVICES", "KUBE-SVC", "KUBE-SEP", "KUBE-MARK", "KUBE-POSTROUTING", "KUBE-NODEPORTS", "KUBE-EXT"} {
		if strings.Contains(rules, name) {
			t.Errorf("%s is left:\n%s", name, rules)
		}
	}
}
