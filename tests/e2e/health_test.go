package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/tests/lab"
)

// get asks an agent over HTTP, from its own node.
func get(host *lab.Host, url string) (string, error) {
	return host.Run("", "curl", "-s", "-i", "--max-time", "5", url)
}

// says waits until an answer has a text in it.
func says(t *testing.T, host *lab.Host, url, text string) {
	t.Helper()
	eventually(t, func() error {
		answer, err := get(host, url)
		if err == nil && !strings.Contains(answer, text) {
			err = fmt.Errorf("%s does not say %q but:\n%s", url, text, answer)
		}
		return err
	})
}

// TestHc1T05_HealthCheckNodePort counts the ready endpoints of each node, which the slice controller tells.
func TestHc1T05_HealthCheckNodePort(t *testing.T) {
	healthy(t)
	service := app("checked")
	service.Spec.Type = corev1.ServiceTypeLoadBalancer
	service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	service = create(t, service, cluster.lab.Web[0], cluster.lab.Web[1])
	url := func(host *lab.Host) string {
		return fmt.Sprintf("http://%s:%d/", host.IPv4, service.Spec.HealthCheckNodePort)
	}
	says(t, cluster.lab.Client, url(cluster.lab.Node1), `"localEndpoints":4,"serviceProxyHealthy":true`)
	says(t, cluster.lab.Node2, url(cluster.lab.Node2), `"localEndpoints":0,"serviceProxyHealthy":true`)
	says(t, cluster.lab.Node2, url(cluster.lab.Node2), "503")
	for _, pod := range []string{"checked-web1", "checked-web2"} {
		if err := cluster.DeletePod(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	says(t, cluster.lab.Client, url(cluster.lab.Node1), "503")
}

// TestHc4Hc5_Taint: a node that is about to go fails /healthz, not /livez.
func TestHc4Hc5_Taint(t *testing.T) {
	healthy(t)
	node := cluster.lab.Node1
	healthz, livez := "http://127.0.0.1:10256/healthz", "http://127.0.0.1:10256/livez"
	says(t, node, healthz, `"nodeEligible":true,"healthy":true`)
	taint := func(effect string) {
		t.Helper()
		if _, err := cluster.Kubectl("", "taint", "node", "node1", "ToBeDeletedByClusterAutoscaler"+effect); err != nil {
			t.Fatal(err)
		}
	}
	taint("=:NoSchedule")
	says(t, node, healthz, "503")
	says(t, node, livez, "200")
	taint("-")
	says(t, node, healthz, "200")
}

// TestE12_NetworkProgramming: changes of endpoints are measured from the time that the slice controller writes down.
func TestE12_NetworkProgramming(t *testing.T) {
	healthy(t)
	count := func() (count int, err error) {
		answer, err := get(cluster.lab.Node1, "http://127.0.0.1:10249/metrics")
		if err != nil {
			return 0, err
		}
		_, rest, found := strings.Cut(answer, `kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} `)
		if !found {
			return 0, nil
		}
		_, err = fmt.Sscan(rest, &count)
		return count, err
	}
	before, err := count()
	if err != nil {
		t.Fatal(err)
	}
	create(t, app("measured"), cluster.lab.Web[0])
	eventually(t, func() error {
		after, err := count()
		if err == nil && after <= before {
			err = errors.New("the change was not measured")
		}
		return err
	})
}
