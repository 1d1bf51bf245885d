package e2e

import (
	"context"
	"fmt"
	"net/netip"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
func (c *ControlPlane) AgentToken(ctx context.Context) (string, error) { return c.token(ctx, "weir") }

// NewAccount makes a ServiceAccount that may do what the agent's may, anew if there is one, and returns a token of it. Tokens of
// the one before are not accepted any more.
func (c *ControlPlane) NewAccount(ctx context.Context, name string) (token string, err error) {
	accounts, bindings := c.Admin.CoreV1().ServiceAccounts("kube-system"), c.Admin.RbacV1().ClusterRoleBindings()
	if err := c.DeleteAccount(ctx, name); err != nil {
		return "", err
	}
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("create ServiceAccount %s: %w", name, err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "weir"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: name}},
	}
	if _, err := bindings.Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("bind ServiceAccount %s: %w", name, err)
	}
	return c.token(ctx, name)
}

// DeleteAccount removes what NewAccount has made.
func (c *ControlPlane) DeleteAccount(ctx context.Context, name string) error {
	for _, remove := range []func(context.Context, string, metav1.DeleteOptions) error{
		c.Admin.CoreV1().ServiceAccounts("kube-system").Delete, c.Admin.RbacV1().ClusterRoleBindings().Delete,
	} {
		if err := remove(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove ServiceAccount %s: %w", name, err)
		}
	}
	return nil
}

func (c *ControlPlane) token(ctx context.Context, account string) (string, error) {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(int64(3600))}}
	answer, err := c.Admin.CoreV1().ServiceAccounts("kube-system").CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("ask for a token of ServiceAccount %s: %w", account, err)
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
