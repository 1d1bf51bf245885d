package proxyconfig

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// TestKubeadm reads the file that kubeadm gives a cluster: it asks for nothing that is not done.
func TestKubeadm(t *testing.T) {
	content, err := os.ReadFile("testdata/kubeadm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file, err := Parse(content)
	if err != nil {
		t.Fatal(err)
	}
	if len(file.Warnings) > 0 {
		t.Errorf("warnings: %q", file.Warnings)
	}
	if file.ClientConnection.Kubeconfig != "/var/lib/kube-proxy/kubeconfig.conf" {
		t.Errorf("kubeconfig: %q", file.ClientConnection.Kubeconfig)
	}
}

// TestWarnings names each field by itself.
func TestWarnings(t *testing.T) {
	file, err := Parse([]byte(`
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ipvs
ipvs: {scheduler: rr, strictARP: true, syncPeriod: 20s}
iptables: {masqueradeAll: false, masqueradeBit: 14, localhostNodePorts: false}
featureGates: {Some: true}
bindAddress: 192.0.2.1
nextYears: {field: 1}
detectLocal: {bridgeInterface: cni0}
`))
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, warning := range file.Warnings {
		name, _, _ := strings.Cut(warning, " ")
		named = append(named, name)
	}
	want := []string{
		"bindAddress", "featureGates", "iptables.localhostNodePorts",
		"ipvs.scheduler", "ipvs.strictARP", "mode", "nextYears",
	}
	if !slices.Equal(named, want) {
		t.Errorf("warned about %q, want %q", named, want)
	}
}

// TestEveryField: each field that kube-proxy has is honoured, or has a reason why not.
func TestEveryField(t *testing.T) {
	for path := range fieldsOf(reflect.TypeFor[kubeproxy.KubeProxyConfiguration](), "") {
		if !covers(honoured, path) && reasonOf(path, false) == reasonOf("no such field", false) {
			t.Errorf("%s is neither honoured nor explained", path)
		}
	}
}

// fieldsOf lists the paths of all fields that are no structs.
func fieldsOf(of reflect.Type, prefix string) map[string]bool {
	paths := map[string]bool{}
	for i := range of.NumField() {
		field := of.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		path := prefix + name
		if field.Type.Kind() != reflect.Struct || field.Type.NumField() == 1 {
			paths[path] = true
			continue
		}
		if name != "" {
			path += "."
		}
		for deeper := range fieldsOf(field.Type, path) {
			paths[deeper] = true
		}
	}
	return paths
}

// TestRefused: what is not a configuration of kube-proxy is said to be none.
func TestRefused(t *testing.T) {
	for content, want := range map[string]string{
		"a: [":                              "yaml:",
		"apiVersion: v1\nkind: ConfigMap\n": `it is a "v1" "ConfigMap", and should be a kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration`,
		"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\noomScoreAdj: many\n": "oomScoreAdj",
	} {
		if _, err := Parse([]byte(content)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}
