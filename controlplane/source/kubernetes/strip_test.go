package kubernetes

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// TestStripSlice: what is left says the same, and is shared where it is the same.
func TestStripSlice(t *testing.T) {
	endpoint := func(address, node string, ready bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{
			Addresses: []string{address}, NodeName: ptr.To(node),
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready), Terminating: ptr.To(!ready)},
		}
	}
	slice := &discoveryv1.EndpointSlice{
		Endpoints: []discoveryv1.Endpoint{endpoint("10.0.0.1", "a", true), endpoint("10.0.0.2", "b", false), endpoint("10.0.0.3", "a", true), {}},
	}
	want := slice.DeepCopy()
	slice.Endpoints[0].TargetRef = &corev1.ObjectReference{Name: "pod"}
	stripSlice(slice)
	if difference := cmp.Diff(want.Endpoints, slice.Endpoints); difference != "" {
		t.Errorf("-want +got:\n%s", difference)
	}
	first, third := slice.Endpoints[0], slice.Endpoints[2]
	if first.NodeName != third.NodeName || first.Conditions.Ready != third.Conditions.Ready {
		t.Error("the name of a node and a condition are there twice")
	}
}

// TestEqualNodes: that a Node is alive is nothing new, where it is and what it is called is.
func TestEqualNodes(t *testing.T) {
	held := &corev1.Node{}
	held.Name, held.ResourceVersion, held.Labels = "a", "1", map[string]string{corev1.LabelTopologyZone: "z"}
	for what, test := range map[string]struct {
		change func(*corev1.Node)
		equal  bool
	}{
		"heartbeat": {func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
			n.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
		}, true},
		"address":    {func(n *corev1.Node) { n.Status.Addresses = []corev1.NodeAddress{{Address: "192.0.2.1"}} }, false},
		"zone":       {func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelTopologyZone: "y"} }, false},
		"taint":      {func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "x"}} }, false},
		"annotation": {func(n *corev1.Node) { n.Annotations = map[string]string{"a": "b"} }, false},
		"deletion":   {func(n *corev1.Node) { n.DeletionTimestamp = &metav1.Time{Time: time.Now()} }, false},
	} {
		now := held.DeepCopy()
		now.ResourceVersion = "2"
		test.change(now)
		stripNode(now)
		if got := equalNodes(held, now); got != test.equal {
			t.Errorf("%s: equal: %v", what, got)
		}
	}
}

// TestStripPod: of the containers the ports of the node are left.
func TestStripPod(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "a", Containers: []corev1.Container{
		{Name: "web", Image: "web", Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolTCP}}},
		{Name: "log", Image: "log", Ports: []corev1.ContainerPort{{ContainerPort: 9000}}},
	}}}
	stripPod(pod)
	want := corev1.PodSpec{NodeName: "a", Containers: []corev1.Container{
		{Name: "web", Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolTCP}}},
	}}
	if difference := cmp.Diff(want, pod.Spec); difference != "" {
		t.Errorf("-want +got:\n%s", difference)
	}
}
