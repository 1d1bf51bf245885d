package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/e2e"
)

// TestFrontends asks every kind of frontend of a Service, from inside and outside, in both families and protocols.
func TestFrontends(t *testing.T) {
	healthy(t)
	web := app("web")
	web.Spec.Type = corev1.ServiceTypeLoadBalancer
	web.Spec.ExternalIPs = []string{"198.18.0.1", "2001:db8:4::1"}
	web = create(t, web, cluster.lab.Web...)
	web.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}, {IP: "2001:db8:3::1"}}
	web, err := cluster.Admin.CoreV1().Services("default").UpdateStatus(t.Context(), web, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []compile.FrontendKind{compile.ClusterIP, compile.NodePort, compile.LoadBalancer, compile.ExternalIP} {
		for _, family := range families {
			for _, protocol := range protocols {
				askFrontends(t, web, kind, family, protocol)
			}
		}
	}
}

func askFrontends(t *testing.T, service *corev1.Service, kind compile.FrontendKind, family compile.Family, protocol compile.Protocol) {
	t.Helper()
	frontends := e2e.Frontends(service, cluster.lab.Node1, kind, family)
	if len(frontends) == 0 {
		t.Fatalf("no %s frontend of %s", kind, family)
	}
	for _, frontend := range frontends {
		if protocol == compile.UDP && kind == compile.NodePort {
			frontend = netip.AddrPortFrom(frontend.Addr(), uint16(service.Spec.Ports[1].NodePort))
		}
		answers(t, cluster.lab.Toolbox, protocol, frontend, cluster.lab.Web...)
		if kind != compile.ClusterIP {
			answers(t, cluster.lab.Client, protocol, frontend, cluster.lab.Web...)
		}
	}
}

// TestS12_OwnService reaches the API server from a pod at the ClusterIP of default/kubernetes.
func TestS12_OwnService(t *testing.T) {
	healthy(t)
	certificate, err := os.ReadFile(filepath.Join(cluster.lab.Dir, "control-plane", "server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certificate)
	eventually(t, func() error {
		return cluster.lab.Toolbox.Do(func() error {
			connection, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", "10.96.0.1:443", &tls.Config{RootCAs: pool})
			if err != nil {
				return err
			}
			return connection.Close()
		})
	})
}

// TestS02_ChangeOfType takes the frontends away from a Service that becomes an ExternalName, and back.
func TestS02_ChangeOfType(t *testing.T) {
	healthy(t)
	services := cluster.Admin.CoreV1().Services("default")
	web := create(t, app("changing"), cluster.lab.Web[0])
	frontend := netip.AddrPortFrom(netip.MustParseAddr(web.Spec.ClusterIP), 80)
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])

	change := func(change func(*corev1.ServiceSpec)) *corev1.Service {
		t.Helper()
		now, err := services.Get(t.Context(), web.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		change(&now.Spec)
		if now, err = services.Update(t.Context(), now, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		return now
	}
	change(func(spec *corev1.ServiceSpec) {
		*spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com", Selector: spec.Selector}
	})
	silent(t, cluster.lab.Toolbox, frontend)
	now := change(func(spec *corev1.ServiceSpec) {
		*spec = app("changing").Spec
		spec.Type = corev1.ServiceTypeNodePort
	})
	for _, frontend := range append(e2e.Frontends(now, cluster.lab.Node1, compile.ClusterIP, compile.IPv4),
		e2e.Frontends(now, cluster.lab.Node1, compile.NodePort, compile.IPv4)...) {
		answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])
	}
}

// TestS03_OtherProxy leaves a Service to another proxy as soon as it has the label.
func TestS03_OtherProxy(t *testing.T) {
	healthy(t)
	web := create(t, app("other"), cluster.lab.Web[0])
	frontend := netip.AddrPortFrom(netip.MustParseAddr(web.Spec.ClusterIP), 80)
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])
	label := func(patch string) {
		t.Helper()
		if _, err := cluster.Kubectl("", "label", "service", web.Name, patch); err != nil {
			t.Fatal(err)
		}
	}
	label("service.kubernetes.io/service-proxy-name=other")
	silent(t, cluster.lab.Toolbox, frontend)
	label("service.kubernetes.io/service-proxy-name-")
	answers(t, cluster.lab.Toolbox, compile.TCP, frontend, cluster.lab.Web[0])
}
