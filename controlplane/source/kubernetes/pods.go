package kubernetes

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// followPods follows the Pods of the node: they may ask not to be served at the socket edge.
func (s *Source) followPods() *cache.Reflector {
	client := s.options.Client.CoreV1().Pods(metav1.NamespaceAll)
	here := fields.OneTermEqualSelector("spec.nodeName", s.options.NodeName).String()
	return follow(s, pods, s.options.Client, &corev1.Pod{}, &lister[*corev1.PodList]{list: client.List, watch: client.Watch, fields: here},
		&sink[*corev1.Pod]{
			strip: stripPod,
			update: func(batch store.Batch, now map[store.Key]*corev1.Pod) {
				batch.Pods = now
				s.options.Store.Update(batch)
			},
			listed: func() { s.listed(pods) },
		})
}

// followNamespaces follows the Namespaces that ask it for their Pods.
func (s *Source) followNamespaces() *cache.Reflector {
	client := s.options.Client.CoreV1().Namespaces()
	return follow(s, namespaces, s.options.Client, &corev1.Namespace{}, &lister[*corev1.NamespaceList]{list: client.List, watch: client.Watch, labels: compile.LabelSocketLB},
		&sink[*corev1.Namespace]{
			strip: func(o *corev1.Namespace) { stripMeta(&o.ObjectMeta) },
			update: func(batch store.Batch, now map[store.Key]*corev1.Namespace) {
				batch.Namespaces = make(map[string]*corev1.Namespace, len(now))
				for key, object := range now {
					batch.Namespaces[key.Name] = object
				}
				s.options.Store.Update(batch)
			},
			listed: func() { s.listed(namespaces) },
		})
}
