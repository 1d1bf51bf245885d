package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// limit is how long anything may take to come about.
const limit = 30 * time.Second

var (
	families  = []compile.Family{compile.IPv4, compile.IPv6}
	protocols = []compile.Protocol{compile.TCP, compile.UDP}
)

// eventually fails the test unless f succeeds within the limit.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Since(begin) > limit {
			t.Fatalf("not within %s: %v", limit, err)
		}
	}
}

// explain prints what the agents say when the test has failed.
func explain(t *testing.T) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, agent := range cluster.agents {
			status, err := agent.CLI("status")
			t.Logf("%s (%v):\n%s\n%s", agent.Node, err, status, agent.Tail())
		}
	})
}

// healthy waits until all agents say that all is well.
func healthy(t *testing.T) {
	t.Helper()
	explain(t)
	for _, agent := range cluster.agents {
		eventually(t, agent.Healthy)
	}
}

// app is a dual-stack Service that selects the pods of its name. It has one port of each protocol.
func app(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector:       map[string]string{"app": name},
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			Ports: []corev1.ServicePort{
				{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(lab.TCPPort)},
				{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, TargetPort: intstr.FromInt32(lab.UDPPort)},
			},
		},
	}
}

// create makes a Service and Pods for some pods of the lab. They go with the test.
func create(t *testing.T, service *corev1.Service, pods ...*lab.Host) *corev1.Service {
	t.Helper()
	services := cluster.Admin.CoreV1().Services("default")
	service, err := services.Create(t.Context(), service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := services.Delete(contextOf(t), service.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	for _, pod := range pods {
		addPod(t, service.Name+"-"+pod.Role, service.Name, pod)
	}
	return service
}

// addPod makes a Pod that goes with the test.
func addPod(t *testing.T, name, app string, pod *lab.Host) {
	t.Helper()
	if err := cluster.AddPod(t.Context(), name, app, pod, nodeOf(pod)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.DeletePod(contextOf(t), name) }) // the test may have done it
}

// nodeOf names the node that a pod is on.
func nodeOf(pod *lab.Host) string {
	if slices.Contains(cluster.lab.Remote(), pod) {
		return cluster.lab.Node2.Role
	}
	return cluster.lab.Node1.Role
}

// answers asks until each of the pods has answered, and nobody else does.
func answers(t *testing.T, from *lab.Host, protocol compile.Protocol, frontend netip.AddrPort, pods ...*lab.Host) {
	t.Helper()
	eventually(t, func() error {
		seen := map[string]bool{}
		for range 40 * len(pods) {
			answer, err := from.Ask(protocol, netip.AddrPort{}, frontend)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(pods, func(h *lab.Host) bool { return h.Role == answer.Server }) {
				return fmt.Errorf("%s %s: %s answers, which is no backend", frontend, protocol, answer.Server)
			}
			if seen[answer.Server] = true; len(seen) == len(pods) {
				return nil
			}
		}
		return fmt.Errorf("%s %s: only %v answer", frontend, protocol, seen)
	})
}

// silent expects that nobody answers, soon.
func silent(t *testing.T, from *lab.Host, frontend netip.AddrPort) {
	t.Helper()
	eventually(t, func() error {
		answer, err := from.AskWithin(200*time.Millisecond, compile.TCP, netip.AddrPort{}, frontend)
		if err == nil {
			return errors.New(answer.Server + " answers")
		}
		return nil
	})
}

// contextOf returns a test's context that outlives its end: what a test has made is removed after it.
func contextOf(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }
