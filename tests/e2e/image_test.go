package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/e2e"
	"github.com/weir-lb/weir/tests/lab"
)

// built is the image and what the DaemonSet says of its container.
type built struct {
	image  *e2e.Image
	pod    corev1.PodSpec
	config map[string]string
	token  string
}

// buildImage builds the image, which goes with the test.
func buildImage(t *testing.T) built {
	t.Helper()
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	image, err := e2e.BuildImage(t.TempDir(), repository)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := image.Remove(); err != nil {
			t.Error(err)
		}
	})
	manifests, err := cluster.Kubectl("", "kustomize", filepath.Join(repository, "deploy/kustomize"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := cluster.AgentToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	deployed := readDeployment(t, manifests)
	return built{image, deployed.daemonSet.Template.Spec, map[string]string{"config.conf": deployed.config}, token}
}

// start starts the image as the agent of node1, in place of the one that runs there, which comes back with the end of the
// test.
func (b built) start(t *testing.T, without ...corev1.Capability) *e2e.Container {
	t.Helper()
	agent, node := cluster.agents[0], cluster.lab.Node1
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := agent.Start(); err != nil {
			t.Error(err)
		}
		healthy(t)
	})
	dir, err := os.MkdirTemp(cluster.lab.Dir, "image-")
	if err != nil {
		t.Fatal(err)
	}
	container, err := e2e.NewContainer(node, dir, e2e.ContainerOptions{
		Pod: b.pod, Image: b.image, Without: without, Config: b.config,
		HostPaths: map[string]string{"/sys/fs/bpf": agent.BPFFS, "/sys/fs/cgroup": node.CgroupRoot(), "/run/weir": t.TempDir()},
		Server:    cluster.lab.Client.IPv4.String(), Token: b.token, CA: cluster.CA(),
		Env: map[string]string{"spec.nodeName": node.Role},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := container.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the container's log:\n%s", container.Log())
		}
		if container.Running() != nil {
			return
		}
		if err := container.Stop(); err != nil {
			t.Error(err)
		}
	})
	return container
}

// status asks the agent in a container for its status, as a person does.
func status(container *e2e.Container) (e2e.Status, error) {
	var status e2e.Status
	if err := container.Running(); err != nil {
		return status, err
	}
	output, err := container.Exec("/weir", "status", "-o", "json")
	if err != nil {
		return status, err
	}
	return status, json.Unmarshal([]byte(output), &status)
}

// TestImage runs the image as the DaemonSet does: what the manifest gives it suffices for all it has to do.
func TestImage(t *testing.T) {
	healthy(t)
	container := buildImage(t).start(t)
	service := app("contained")
	service.Spec.Type = corev1.ServiceTypeNodePort
	service = create(t, service, cluster.lab.Web[0], cluster.lab.Web[2])
	eventually(t, func() error {
		status, err := status(container)
		switch {
		case err != nil:
			return err
		case !status.Healthy:
			return fmt.Errorf("not healthy: %q", status.Reasons)
		case len(status.Agent.Problems)+len(status.Agent.Errors) > 0:
			return fmt.Errorf("healthy, with problems: %v, %v", status.Agent.Problems, status.Agent.Errors)
		case status.Agent.Sockets.Cgroup == "":
			return errors.New("sockets are not served")
		}
		return nil
	})
	seesLateNamespaces(t, container)
	node := cluster.lab.Node1
	pods := []*lab.Host{cluster.lab.Web[0], cluster.lab.Web[2]}
	for _, family := range families {
		for _, protocol := range protocols {
			nodePort := netip.AddrPortFrom(node.Addr(family), uint16(service.Spec.Ports[0].NodePort))
			if protocol == compile.UDP {
				nodePort = netip.AddrPortFrom(node.Addr(family), uint16(service.Spec.Ports[1].NodePort))
			}
			clusterIP := e2e.Frontends(service, node, compile.ClusterIP, family)[0]
			answers(t, cluster.lab.Client, protocol, nodePort, pods...) // the node edge
			answers(t, node, protocol, clusterIP, pods...)              // the socket edge
			answers(t, cluster.lab.Toolbox, protocol, clusterIP, pods...)
		}
	}
}

// seesLateNamespaces: the network namespace of a pod that comes after the agent is propagated into its container.
func seesLateNamespaces(t *testing.T, container *e2e.Container) {
	t.Helper()
	name := fmt.Sprintf("weir-%d-late", os.Getpid())
	if _, err := cluster.lab.Client.Run("", "ip", "netns", "add", name); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := cluster.lab.Client.Run("", "ip", "netns", "delete", name); err != nil {
			t.Error(err)
		}
	}()
	eventually(t, func() error {
		sees, err := container.Sees("/run/netns/" + name)
		if err == nil && !sees {
			err = errors.New("the container does not see a network namespace that came after it")
		}
		return err
	})
}

// TestImageCapabilities takes away what the manifest lists: what is missing then is said.
func TestImageCapabilities(t *testing.T) {
	healthy(t)
	image := buildImage(t)
	for _, test := range []struct {
		without []corev1.Capability
		runs    bool
		says    string
	}{
		{[]corev1.Capability{"NET_ADMIN"}, false, "CAP_NET_ADMIN is missing"},
		// SYS_ADMIN includes these two. They are for clusters that do without it.
		{[]corev1.Capability{"SYS_ADMIN", "BPF"}, false, "CAP_BPF is missing"},
		{[]corev1.Capability{"SYS_ADMIN", "PERFMON"}, false, "CAP_PERFMON is missing"},
		{[]corev1.Capability{"SYS_ADMIN"}, true, "CAP_SYS_ADMIN"},
		// Since Linux 5.11 maps are accounted to the cgroup.
		{[]corev1.Capability{"SYS_RESOURCE"}, true, ""},
	} {
		t.Run(fmt.Sprintf("without %v", test.without), func(t *testing.T) {
			container := image.start(t, test.without...)
			eventually(t, func() error {
				status, err := status(container)
				if !test.runs {
					if container.Running() == nil {
						return errors.New("it runs")
					}
					return contains(container.Log(), test.says)
				}
				if err == nil && !status.Healthy {
					err = fmt.Errorf("not healthy: %q", status.Reasons)
				}
				if err != nil {
					return err
				}
				return contains(fmt.Sprint(status.Agent.Problems), test.says)
			})
		})
	}
}

func contains(text, part string) error {
	if !strings.Contains(text, part) {
		return fmt.Errorf("it does not say %q but:\n%s", part, text)
	}
	return nil
}
