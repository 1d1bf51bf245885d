package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	chart     = "../../deploy/helm"
	kustomize = "../../deploy/kustomize"
	// release is the name of the chart's release, and so of its objects, where it is really installed: deploy/kustomize is
	// there as "weir".
	release = "weir-by-helm"
	// kubernetesVersion is what helm template takes the cluster for: it asks none.
	kubernetesVersion = "1.35.0"
)

// deployment is what there is to a deployment, whichever way it is made.
type deployment struct {
	daemonSet      appsv1.DaemonSetSpec
	role           []rbacv1.PolicyRule
	subjects       []rbacv1.Subject
	serviceAccount string
	config         string
}

// helm runs helm as the administrator.
func helm(args ...string) (string, error) {
	path, err := filepath.Abs(filepath.Join(binaries, "helm"))
	if err != nil {
		return "", err
	}
	home := cluster.lab.Dir + "/helm"
	command := append([]string{
		"env", "HELM_CACHE_HOME=" + home, "HELM_CONFIG_HOME=" + home, "HELM_DATA_HOME=" + home, path,
		"--kubeconfig", cluster.AdminKubeconfig(),
	}, args...)
	return cluster.lab.Client.Run("", command[0], command[1:]...)
}

// chartPath is where the chart is, whatever directory helm runs in.
func chartPath(t *testing.T) string {
	path, err := filepath.Abs(chart)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestHelmRendersWhatKustomizeDoes: with the values as they are, both deploy the same; and so they do with DSR.
func TestHelmRendersWhatKustomizeDoes(t *testing.T) {
	path, err := filepath.Abs(kustomize)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("as they are", func(t *testing.T) { deploysTheSame(t, path) })
	t.Run("with DSR", func(t *testing.T) { deploysTheSame(t, withComponent(t, path, "dsr"), "--set", "forward=dsr") })
}

// withComponent returns a kustomization of the user's own, which adds a component to that of a directory.
func withComponent(t *testing.T, path, component string) string {
	t.Helper()
	dir := t.TempDir()
	own, err := filepath.Rel(dir, path)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("resources: [%s]\ncomponents: [%s/%s]\n", own, own, component)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// deploysTheSame compares what kustomize and helm make.
func deploysTheSame(t *testing.T, path string, values ...string) {
	t.Helper()
	rendered, err := helm(append([]string{"template", "weir", chartPath(t), "--namespace", "kube-system", "--kube-version", kubernetesVersion}, values...)...)
	if err != nil {
		t.Fatal(err)
	}
	built, err := cluster.Kubectl("", "kustomize", path)
	if err != nil {
		t.Fatal(err)
	}
	if difference := cmp.Diff(readDeployment(t, built), readDeployment(t, rendered), cmp.AllowUnexported(deployment{})); difference != "" {
		t.Errorf("deploy/kustomize (-) and deploy/helm (+) differ:\n%s", difference)
	}
}

// readDeployment sorts out manifests, without names that are made up, and without labels.
func readDeployment(t *testing.T, manifests string) deployment {
	t.Helper()
	var d deployment
	for document := range strings.SplitSeq(manifests, "\n---\n") {
		var meta metav1.PartialObjectMetadata
		read(t, document, &meta)
		switch meta.Kind {
		case "DaemonSet":
			var daemonSet appsv1.DaemonSet
			read(t, document, &daemonSet)
			d.daemonSet = daemonSet.Spec
		case "ClusterRole":
			var role rbacv1.ClusterRole
			read(t, document, &role)
			d.role = role.Rules
		case "ClusterRoleBinding":
			var binding rbacv1.ClusterRoleBinding
			read(t, document, &binding)
			d.subjects = binding.Subjects
		case "ServiceAccount":
			d.serviceAccount = meta.Namespace + "/" + meta.Name
		case "ConfigMap":
			var config corev1.ConfigMap
			read(t, document, &config)
			d.config = withoutComments(t, config.Data["config.conf"])
		default:
			t.Errorf("a %q is deployed, of which nothing is known here", meta.Kind)
		}
	}
	d.daemonSet.Selector = nil
	d.daemonSet.Template.ObjectMeta = metav1.ObjectMeta{}
	for _, volume := range d.daemonSet.Template.Spec.Volumes {
		if volume.ConfigMap != nil {
			volume.ConfigMap.Name = "weir" // kustomize adds a hash of the content
		}
	}
	return d
}

// read reads a document; fields that the API does not know are an error.
func read(t *testing.T, document string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(document), into); err != nil {
		t.Fatalf("%v:\n%s", err, document)
	}
}

func withoutComments(t *testing.T, text string) string {
	t.Helper()
	var config map[string]any
	read(t, text, &config)
	plain, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

// TestHelmValues: each value comes to stand where it belongs.
func TestHelmValues(t *testing.T) {
	values := filepath.Join(t.TempDir(), "values.yaml")
	text := `
image: {repository: registry.example/weir, tag: v1, pullPolicy: Always}
apiserverEndpoints: ["10.0.0.1:6443", "10.0.0.2:6443"]
devices: [eth0, "bond*"]
xdp: off
socketLB: host
forward: dsr
nodePortAddresses: [primary]
snatPorts: 50000-59999
logLevel: debug
extraArgs: [--max-flows=4194304]
resources: {limits: {memory: 1Gi}}
config: {healthzBindAddress: "0.0.0.0:20256", nodePortAddresses: null}
`
	if err := os.WriteFile(values, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	rendered, err := helm("template", "weir", chartPath(t), "--namespace", "kube-system", "--kube-version", kubernetesVersion, "--values", values)
	if err != nil {
		t.Fatal(err)
	}
	d := readDeployment(t, rendered)
	agent := d.daemonSet.Template.Spec.Containers[0]
	if agent.Image != "registry.example/weir:v1" || agent.ImagePullPolicy != corev1.PullAlways {
		t.Errorf("the image is %s, pulled %s", agent.Image, agent.ImagePullPolicy)
	}
	want := []string{
		"agent", "--node-name=$(NODE_NAME)", "--config=/etc/weir/config.conf", "--xdp=off", "--socket-lb=host", "--forward=dsr", "--log-level=debug",
		"--apiserver-endpoints=10.0.0.1:6443,10.0.0.2:6443", "--devices=eth0,bond*", "--nodeport-addresses=primary",
		"--snat-ports=50000-59999", "--max-flows=4194304",
	}
	if !slices.Equal(agent.Args, want) {
		t.Errorf("the arguments are\n%q, not\n%q", agent.Args, want)
	}
	if port := agent.Ports[0].ContainerPort; port != 20256 {
		t.Errorf("probes go to port %d, not to that of healthzBindAddress", port)
	}
	if limit := agent.Resources.Limits.Memory().String(); limit != "1Gi" {
		t.Errorf("the memory limit is %s", limit)
	}
	if !strings.Contains(d.config, "healthzBindAddress: 0.0.0.0:20256") {
		t.Errorf("the configuration is\n%s", d.config)
	}
	if _, err := helm("template", "weir", chartPath(t), "--kube-version", kubernetesVersion, "--set", "xdp=fast"); err == nil || !strings.Contains(err.Error(), "/xdp") {
		t.Errorf("xdp=fast is no value of it, and helm says %v", err)
	}
}

// TestHelmInstall installs the chart for real, changes a value, and takes it away.
func TestHelmInstall(t *testing.T) {
	for _, step := range [][]string{
		{"lint", chartPath(t)},
		{"install", release, chartPath(t), "--namespace", "kube-system", "--dry-run=server"},
		{"install", release, chartPath(t), "--namespace", "kube-system"},
		{"upgrade", release, chartPath(t), "--namespace", "kube-system", "--set", "socketLB=off"},
	} {
		if _, err := helm(step...); err != nil {
			t.Fatalf("helm %s: %v", step[0], err)
		}
	}
	daemonSets := cluster.Admin.AppsV1().DaemonSets("kube-system")
	daemonSet, err := daemonSets.Get(t.Context(), release, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if args := daemonSet.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--socket-lb=off") {
		t.Errorf("after the upgrade the arguments are %q", args)
	}
	if _, err := helm("uninstall", release, "--namespace", "kube-system"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		left, err := cluster.Kubectl("", "get", "daemonset,configmap,serviceaccount,clusterrole,clusterrolebinding", "-A", "-o", "name",
			"-l", "app.kubernetes.io/instance="+release)
		if err == nil && strings.TrimSpace(left) != "" {
			err = fmt.Errorf("helm leaves behind:\n%s", left)
		}
		return err
	})
}
