package compile

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestPods says whose sockets are left to the pod edge: the Pod's annotation counts, else its Namespace's label.
func TestPods(t *testing.T) {
	newPod := func(name, namespace, annotation string) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, UID: "uid"},
			Spec:       corev1.PodSpec{NodeName: "node1"},
			Status:     corev1.PodStatus{PodIP: "10.1.1.1", PodIPs: []corev1.PodIP{{IP: "10.1.1.1"}, {IP: "fd00::1"}}},
		}
		if annotation != "" {
			p.Annotations = map[string]string{LabelSocketLB: annotation}
		}
		return p
	}
	namespaces := map[string]*corev1.Namespace{
		"mesh": {ObjectMeta: metav1.ObjectMeta{Name: "mesh", Labels: map[string]string{LabelSocketLB: "off"}}},
	}
	addresses := []netip.Addr{netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("fd00::1")}
	elsewhere, done := newPod("elsewhere", "default", ""), newPod("done", "default", "")
	elsewhere.Spec.NodeName, done.Status.Phase = "node2", corev1.PodSucceeded
	pods, problems := Pods([]*corev1.Pod{
		newPod("a", "default", ""), newPod("b", "default", "off"), newPod("c", "mesh", ""), newPod("d", "mesh", "on"),
		newPod("e", "default", "no"), elsewhere, done,
	}, namespaces, "node1")
	want := []Pod{
		{Name: "default/a"},
		{Name: "default/b", LeaveSockets: true},
		{Name: "default/e", LeaveSockets: true},
		{Name: "mesh/c", LeaveSockets: true},
		{Name: "mesh/d"},
	}
	for i := range want {
		want[i].UID, want[i].Addresses = "uid", addresses
	}
	if !reflect.DeepEqual(pods, want) {
		t.Errorf("got %+v, want %+v", pods, want)
	}
	if len(problems) != 1 || problems[0].Object != "Pod default/e" || problems[0].Reason != "PolicyUnknown" {
		t.Errorf("problems: %v", problems)
	}
}
