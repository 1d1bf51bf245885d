package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/e2e"
	"github.com/weir-lb/weir/tests/lab"
)

// TestP01P02_ExternalPolicyLocal: from outside, only backends of the node asked, which see the client's address; where it has
// none, nobody answers. From inside, all (P03).
func TestP01P02_ExternalPolicyLocal(t *testing.T) {
	healthy(t)
	service := app("external-local")
	service.Spec.Type = corev1.ServiceTypeNodePort
	service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	service = create(t, service, cluster.lab.Web[2])
	client := cluster.lab.Client
	for _, family := range families {
		nodePort := e2e.Frontends(service, cluster.lab.Node1, compile.NodePort, family)[0]
		answers(t, cluster.lab.Toolbox, compile.TCP, nodePort, cluster.lab.Web[2])
		if answer, err := client.AskWithin(300*time.Millisecond, compile.TCP, netip.AddrPort{}, nodePort); err == nil {
			t.Errorf("%s, which has no backend on its node, is answered by %s", nodePort, answer.Server)
		}
	}
	addPod(t, "external-local-web1", service.Name, cluster.lab.Web[0])
	for _, family := range families {
		nodePort := e2e.Frontends(service, cluster.lab.Node1, compile.NodePort, family)[0]
		answers(t, client, compile.TCP, nodePort, cluster.lab.Web[0])
		answer, err := client.Ask(compile.TCP, netip.AddrPort{}, nodePort)
		if err != nil || answer.Client.Addr() != client.Addr(family) {
			t.Errorf("the backend sees %s (%v), want the client's %s", answer.Client, err, client.Addr(family))
		}
		answers(t, cluster.lab.Toolbox, compile.TCP, nodePort, cluster.lab.Web[0], cluster.lab.Web[2])
	}
}

// TestP05_InternalPolicyLocal: a ClusterIP leads to backends of the same node alone, on each node to others.
func TestP05_InternalPolicyLocal(t *testing.T) {
	healthy(t)
	service := app("internal-local")
	service.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	service = create(t, service, cluster.lab.Web[0], cluster.lab.Web[2])
	for _, family := range families {
		frontend := e2e.Frontends(service, cluster.lab.Node1, compile.ClusterIP, family)[0]
		answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])
		answers(t, cluster.lab.Node1, compile.UDP, frontend, cluster.lab.Web[0])
		answers(t, cluster.lab.Web[3], compile.TCP, frontend, cluster.lab.Web[2])
	}
}

// TestA01A05_Affinity: a client keeps its backend over all frontends of a Service, until that is not asked for any more.
func TestA01A05_Affinity(t *testing.T) {
	healthy(t)
	service := app("sticky")
	service.Spec.Type = corev1.ServiceTypeLoadBalancer
	service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	service = create(t, service, cluster.lab.Web...)
	ingress(t, service, "203.0.113.9", "2001:db8:3::9")
	ways := map[*lab.Host][]compile.FrontendKind{
		cluster.lab.Toolbox: {compile.ClusterIP, compile.NodePort, compile.LoadBalancer}, // the socket edge
		cluster.lab.Web[3]:  {compile.ClusterIP},                                         // the pod edge
		cluster.lab.Client:  {compile.NodePort, compile.LoadBalancer},                    // the node edge
	}
	for from, kinds := range ways {
		server := ""
		for round := range 10 {
			for _, kind := range kinds {
				frontend := e2e.Frontends(service, cluster.lab.Node1, kind, compile.IPv4)[0]
				eventually(t, func() error {
					answer, err := from.Ask(compile.TCP, netip.AddrPort{}, frontend)
					if err == nil && server != "" && answer.Server != server {
						t.Fatalf("%s: %s answers at %s in round %d, and %s did before", from.Role, answer.Server, frontend, round, server)
					}
					server = answer.Server
					return err
				})
			}
		}
	}
	patch(t, service, `{"spec": {"sessionAffinity": "None"}}`)
	for from, kinds := range ways {
		answers(t, from, compile.TCP, e2e.Frontends(service, cluster.lab.Node1, kinds[0], compile.IPv4)[0], cluster.lab.Web...)
	}
}

// TestL04_SourceRanges: who may use a load balancer's address, and that it changes while it is used.
func TestL04_SourceRanges(t *testing.T) {
	healthy(t)
	service := app("ranges")
	service.Spec.Type = corev1.ServiceTypeLoadBalancer
	service.Spec.LoadBalancerSourceRanges = []string{"192.0.2.10/32"}
	service = create(t, service, cluster.lab.Web[0])
	ingress(t, service, "203.0.113.10", "2001:db8:3::10")
	frontend := netip.MustParseAddrPort("203.0.113.10:80")
	allowed, denied := netip.MustParseAddrPort("192.0.2.10:0"), netip.MustParseAddrPort("192.0.2.11:0")
	ask := func(from netip.AddrPort) error {
		_, err := cluster.lab.Client.AskWithin(300*time.Millisecond, compile.TCP, from, frontend)
		return err
	}
	for range 2 {
		eventually(t, func() error {
			if err := ask(allowed); err != nil {
				return fmt.Errorf("%s is allowed, and gets: %w", allowed, err)
			}
			if ask(denied) == nil {
				return fmt.Errorf("%s is served, and not allowed", denied)
			}
			return nil
		})
		patch(t, service, `{"spec": {"loadBalancerSourceRanges": ["192.0.2.11/32"]}}`)
		allowed, denied = denied, allowed
	}
}

// TestH01_TrafficDistribution: the slice controller writes hints, and traffic stays in its zone while all endpoints have some.
func TestH01_TrafficDistribution(t *testing.T) {
	healthy(t)
	for _, node := range []string{"node1", "node2"} {
		label := func(value string) {
			t.Helper()
			if _, err := cluster.Kubectl("", "label", "node", node, "topology.kubernetes.io/zone"+value); err != nil {
				t.Error(err)
			}
		}
		label("=zone-of-" + node)
		t.Cleanup(func() { label("-") })
	}
	service := app("zonal")
	service.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferClose)
	service = create(t, service, cluster.lab.Web[0], cluster.lab.Web[2])
	for _, family := range families {
		frontend := e2e.Frontends(service, cluster.lab.Node1, compile.ClusterIP, family)[0]
		answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])
		answers(t, cluster.lab.Web[3], compile.TCP, frontend, cluster.lab.Web[2])
	}
}

// TestT01_TerminatingEndpoints: while a pod ends, others get its new connections; the last ones serve until they are gone.
func TestT01_TerminatingEndpoints(t *testing.T) {
	healthy(t)
	service := create(t, app("ending"), cluster.lab.Web[0], cluster.lab.Web[2])
	frontend := e2e.Frontends(service, cluster.lab.Node1, compile.ClusterIP, compile.IPv4)[0]
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0], cluster.lab.Web[2])
	end := func(name string, seconds int64) {
		t.Helper()
		err := cluster.Admin.CoreV1().Pods("default").Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &seconds})
		if err != nil {
			t.Fatal(err)
		}
	}
	end("ending-web1", 60)
	waitGoneBackend(t, frontend, 0)
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[2])
	end("ending-web3", 60)
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0], cluster.lab.Web[2])
	end("ending-web1", 0)
	end("ending-web3", 0)
	eventually(t, func() error {
		if _, err := cluster.lab.Toolbox.AskWithin(300*time.Millisecond, compile.TCP, netip.AddrPort{}, frontend); err == nil {
			return errors.New("pods that are gone answer")
		}
		return nil
	})
}

// ingress gives a Service addresses of a load balancer.
func ingress(t *testing.T, service *corev1.Service, addresses ...string) {
	t.Helper()
	for _, address := range addresses {
		service.Status.LoadBalancer.Ingress = append(service.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: address})
	}
	updated, err := cluster.Admin.CoreV1().Services(service.Namespace).UpdateStatus(t.Context(), service, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	*service = *updated
}

// patch changes a Service.
func patch(t *testing.T, service *corev1.Service, text string) {
	t.Helper()
	_, err := cluster.Admin.CoreV1().Services(service.Namespace).Patch(t.Context(), service.Name, types.MergePatchType, []byte(text), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
}
