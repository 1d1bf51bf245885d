package kubernetes

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// stripService leaves what a Service is compiled from, and what names it in an Event.
func stripService(s *corev1.Service) {
	stripMeta(&s.ObjectMeta)
	s.OwnerReferences = nil
	s.Status.Conditions = nil
}

// stripSlice leaves addresses, conditions, places and hints. There may be a million endpoints: what is the same is shared.
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
	s.Endpoints = slices.Clone(s.Endpoints) // what is decoded has room for more
	yes, no, nodes := true, false, map[string]*string{}
	shared := func(value *bool) *bool {
		switch {
		case value == nil:
			return nil
		case *value:
			return &yes
		default:
			return &no
		}
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.TargetRef, e.Hostname, e.Zone, e.DeprecatedTopology = nil, nil, nil, nil
		e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating = shared(e.Conditions.Ready), shared(e.Conditions.Serving), shared(e.Conditions.Terminating)
		if e.NodeName == nil {
			continue
		}
		if known := nodes[*e.NodeName]; known != nil {
			e.NodeName = known
		}
		nodes[*e.NodeName] = e.NodeName
	}
}

// stripNode leaves addresses, labels, taints and what says that it goes.
func stripNode(n *corev1.Node) {
	stripMeta(&n.ObjectMeta)
	n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses}
}

// equalNodes tells whether a stripped Node says the same as before: it tells every few minutes that it is alive.
func equalNodes(old, now *corev1.Node) bool {
	a, b := *old, *now
	a.ResourceVersion, b.ResourceVersion = "", ""
	return equality.Semantic.DeepEqual(a, b)
}

// stripPod leaves where a Pod is, its addresses, the node's ports that it has, and its annotations.
func stripPod(p *corev1.Pod) {
	stripMeta(&p.ObjectMeta)
	p.Labels, p.OwnerReferences = nil, nil
	containers := p.Spec.Containers
	p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork}
	for _, container := range containers {
		if slices.ContainsFunc(container.Ports, func(port corev1.ContainerPort) bool { return port.HostPort != 0 }) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: container.Name, Ports: container.Ports})
		}
	}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
}

func stripMeta(meta *metav1.ObjectMeta) {
	meta.ManagedFields = nil
	meta.Finalizers = nil
	delete(meta.Annotations, corev1.LastAppliedConfigAnnotation)
}
