package kubernetes

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// followOtherNodes follows what the other Nodes say of tunnels (DSR). Of thousands of Nodes, each of which tells how it is
// all the time, the server sends the metadata alone; the store hears of those that have the annotation, when it changes.
func (s *Source) followOtherNodes() *cache.Reflector {
	client := s.options.Metadata.Resource(corev1.SchemeGroupVersion.WithResource("nodes"))
	list := func(ctx context.Context, options metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
		return client.List(ctx, options)
	}
	return follow(s, otherNodes, s.options.Metadata, &metav1.PartialObjectMetadata{}, &lister[*metav1.PartialObjectMetadataList]{list: list, watch: client.Watch},
		&sink[*metav1.PartialObjectMetadata]{
			strip: stripOtherNode,
			equal: func(old, now *metav1.PartialObjectMetadata) bool {
				return old.Annotations[compile.AnnotationDSR] == now.Annotations[compile.AnnotationDSR]
			},
			update: func(batch store.Batch, now map[store.Key]*metav1.PartialObjectMetadata) {
				batch.Nodes = make(map[string]*corev1.Node, len(now))
				for key, object := range now {
					if key.Name != s.options.NodeName {
						batch.Nodes[key.Name] = otherNode(object)
					}
				}
				s.options.Store.Update(batch)
			},
			listed: func() { s.listed(otherNodes) },
		})
}

// otherNode returns a Node of which the annotation is known; nil where it has none, as if it were not there.
func otherNode(object *metav1.PartialObjectMetadata) *corev1.Node {
	if object == nil || object.Annotations == nil {
		return nil
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: object.Name, Annotations: object.Annotations}}
}

// stripOtherNode leaves the annotation, if there is one, and what tells versions apart.
func stripOtherNode(o *metav1.PartialObjectMetadata) {
	kept := metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion}
	if value, there := o.Annotations[compile.AnnotationDSR]; there {
		kept.Annotations = map[string]string{compile.AnnotationDSR: value}
	}
	o.TypeMeta, o.ObjectMeta = metav1.TypeMeta{}, kept
}
