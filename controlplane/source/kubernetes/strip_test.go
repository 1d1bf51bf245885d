package kubernetes

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
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
