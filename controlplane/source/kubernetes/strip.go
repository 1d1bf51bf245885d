package kubernetes

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// stripService leaves what a Service is compiled from, and what names it in an Event.
func stripService(s *corev1.Service) {
	stripMeta(&s.ObjectMeta)
	s.OwnerReferences = nil
	s.Status.Conditions = nil
}

// stripSlice leaves addresses, conditions, places and hints.
func stripSlice(s *discoveryv1.EndpointSlice) {
	stripMeta(&s.ObjectMeta)
	labels := map[string]string{}
	for _, name := range []string{discoveryv1.LabelServiceName, labelProxyName, labelHeadless} {
		if value, there := s.Labels[name]; there {
			labels[name] = value
		}
	}
	s.Labels = labels
	for i := range s.OwnerReferences {
		owner := &s.OwnerReferences[i]
		*owner = metav1.OwnerReference{APIVersion: owner.APIVersion, Kind: owner.Kind, Name: owner.Name, UID: owner.UID}
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.TargetRef, e.Hostname, e.Zone, e.DeprecatedTopology = nil, nil, nil, nil
	}
}

// stripNode leaves addresses, labels, taints and what says that it goes.
func stripNode(n *corev1.Node) {
	stripMeta(&n.ObjectMeta)
	n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses}
}

// stripPod leaves where a Pod is, its addresses and its annotations.
func stripPod(p *corev1.Pod) {
	stripMeta(&p.ObjectMeta)
	p.Labels, p.OwnerReferences = nil, nil
	p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
}

func stripMeta(meta *metav1.ObjectMeta) {
	meta.ManagedFields = nil
	meta.Finalizers = nil
	delete(meta.Annotations, corev1.LastAppliedConfigAnnotation)
}
