package e2e

import (
	"context"
	"fmt"
	"net/netip"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

const namespace = "default"

// addNode makes the Node object of a host.
func (c *ControlPlane) addNode(ctx context.Context, host *lab.Host) error {
	nodes := c.Admin.CoreV1().Nodes()
	node, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: host.Role}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for _, address := range []netip.Addr{host.IPv4, host.IPv6} {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address.String()})
	}
	_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
	return err
}

// AddPod makes the Pod object of a pod that the lab has, ready, under a name of its own.
func (c *ControlPlane) AddPod(ctx context.Context, name, app string, host *lab.Host, node string) error {
	pods := c.Admin.CoreV1().Pods(namespace)
	pod, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			NodeName:   node,
			Containers: []corev1.Container{{Name: "server", Image: "server"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create Pod %s: %w", name, err)
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.PodIP = host.IPv4.String()
	pod.Status.PodIPs = []corev1.PodIP{{IP: host.IPv4.String()}, {IP: host.IPv6.String()}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	if _, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("make Pod %s ready: %w", name, err)
	}
	return nil
}

// DeletePod removes a Pod object; terminating is what a kubelet that takes its time shows first.
func (c *ControlPlane) DeletePod(ctx context.Context, name string) error {
	return c.Admin.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))})
}

// AgentToken returns a token of the ServiceAccount that the DaemonSet has.
func (c *ControlPlane) AgentToken(ctx context.Context) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(3600))}}
	answer, err := c.Admin.CoreV1().ServiceAccounts("kube-system").CreateToken(ctx, "weir", request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask for a token of ServiceAccount weir: %w", err)
	}
	return answer.Status.Token, nil
}

// Frontends lists where clients send to, of one family and one kind.
func Frontends(service *corev1.Service, node *lab.Host, kind compile.FrontendKind, family compile.Family) []netip.AddrPort {
	port := service.Spec.Ports[0]
	var texts []string
	number := uint16(port.Port)
	switch kind {
	case compile.ClusterIP:
		texts = service.Spec.ClusterIPs
	case compile.NodePort:
		texts, number = []string{node.IPv4.String(), node.IPv6.String()}, uint16(port.NodePort)
	case compile.LoadBalancer:
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			texts = append(texts, ingress.IP)
		}
	case compile.ExternalIP:
		texts = service.Spec.ExternalIPs
	}
	var frontends []netip.AddrPort
	for _, text := range texts {
		address, err := netip.ParseAddr(text)
		if err == nil && address.Is4() == (family == compile.IPv4) {
			frontends = append(frontends, netip.AddrPortFrom(address, number))
		}
	}
	return frontends
}

// AddNodes makes Node objects, and returns the kubeconfig of their agents.
func (c *ControlPlane) AddNodes(ctx context.Context, hosts ...*lab.Host) (kubeconfig string, err error) {
	for _, host := range hosts {
		if err := c.addNode(ctx, host); err != nil {
			return "", err
		}
	}
	token, err := c.AgentToken(ctx)
	if err != nil {
		return "", err
	}
	return c.Kubeconfig("weir", token, c.URL())
}
