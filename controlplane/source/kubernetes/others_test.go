package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

var nodeResource = corev1.SchemeGroupVersion.WithResource("nodes")

// metadataOf returns the metadata of a Node with the annotation; "-": without.
func metadataOf(name, version, value string) *metav1.PartialObjectMetadata {
	o := &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "1", ResourceVersion: version, Annotations: map[string]string{"other": "x"}, Labels: map[string]string{"large": "x"}},
	}
	if value != "-" {
		o.Annotations[compile.AnnotationDSR] = value
	}
	return o
}

// others is a source that follows all Nodes.
type others struct {
	*world
	metadata *metadatafake.FakeMetadataClient
}

func newOthers(t *testing.T, objects ...runtime.Object) *others {
	t.Helper()
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	own := node("node1", "192.0.2.1")
	own.Annotations = map[string]string{compile.AnnotationDSR: "192.0.2.1"}
	o := &others{world: newWorld(t, "", own), metadata: metadatafake.NewSimpleMetadataClient(scheme, objects...)}
	o.source = New(Options{Client: o.client, Metadata: o.metadata, Store: o.store, NodeName: "node1", Log: zap.NewNop()})
	return o
}

// become changes the metadata of a Node.
func (o *others) become(now *metav1.PartialObjectMetadata) {
	o.Helper()
	if err := o.metadata.Tracker().Update(nodeResource, now, ""); err != nil {
		o.Fatal(err)
	}
}

// describeNodes names nodes and what they say.
func describeNodes(work store.Work) string {
	var words []string
	for _, n := range work.Nodes {
		words = append(words, n.Name+"="+n.Annotations[compile.AnnotationDSR])
	}
	return strings.Join(words, " ")
}

// TestOtherNodes: of the other Nodes the annotation is known, changes of it are work, and nothing else is.
func TestOtherNodes(t *testing.T) {
	w := newOthers(t, metadataOf("node1", "1", "another"), metadataOf("node2", "1", "192.0.2.2"), metadataOf("node3", "1", "-"))
	w.run()
	if got, want := describeNodes(w.next()), "node1=192.0.2.1 node2=192.0.2.2"; got != want {
		t.Errorf("nodes are %s, want %s", got, want)
	}
	if got := w.store.Node("node2"); len(got.Annotations)+len(got.Labels) != 1 {
		t.Errorf("kept is %+v", got)
	}
	w.become(metadataOf("node2", "2", "192.0.2.2")) // as they tell every few minutes
	w.become(metadataOf("node3", "2", "-"))
	w.idle()
	w.become(metadataOf("node3", "3", "192.0.2.3"))
	if got, want := describeNodes(w.next()), "node1=192.0.2.1 node2=192.0.2.2 node3=192.0.2.3"; got != want {
		t.Errorf("nodes are %s, want %s", got, want)
	}
	w.become(metadataOf("node2", "3", "-"))
	if got, want := describeNodes(w.next()), "node1=192.0.2.1 node3=192.0.2.3"; got != want {
		t.Errorf("nodes are %s, want %s", got, want)
	}
	if err := w.metadata.Tracker().Delete(nodeResource, "", "node3"); err != nil {
		t.Fatal(err)
	}
	if got, want := describeNodes(w.next()), "node1=192.0.2.1"; got != want {
		t.Errorf("nodes are %s, want %s", got, want)
	}
}

// TestOtherNodesForbidden: everything else works, with SNAT, and status says what is missing.
func TestOtherNodesForbidden(t *testing.T) {
	w := newOthers(t)
	w.metadata.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "", errors.New("no RBAC policy matched"))
	})
	w.run()
	if got, want := describeNodes(w.next()), "node1=192.0.2.1"; got != want {
		t.Errorf("nodes are %s, want %s", got, want)
	}
	if problem := w.problem(reasonForbidden); !strings.Contains(problem.Message, "not allowed to list nodes") {
		t.Errorf("problem: %+v", problem)
	}
	if w.source.NodeMissing() {
		t.Error("the node's own is taken for missing")
	}
}

// TestAnnotate gives a Node an annotation, and takes it away, beside those of others.
func TestAnnotate(t *testing.T) {
	own := node("node1")
	own.Annotations = map[string]string{"other": "x"}
	w := newWorld(t, "", own)
	a := Annotator{Client: w.client, Node: "node1"}
	for _, value := range []string{"192.0.2.1,2001:db8::1", "192.0.2.1", ""} {
		if err := a.Annotate(t.Context(), compile.AnnotationDSR, value); err != nil {
			t.Fatal(err)
		}
		got, err := w.client.CoreV1().Nodes().Get(t.Context(), "node1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		held, there := got.Annotations[compile.AnnotationDSR]
		if held != value || there != (value != "") || got.Annotations["other"] != "x" {
			t.Errorf("annotations are %v, want %q", got.Annotations, value)
		}
	}
	w.client.PrependReactor("patch", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "node1", errors.New("no RBAC policy matched"))
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	problem := a.Explain(a.Annotate(ctx, compile.AnnotationDSR, "192.0.2.1"))
	words := []string{"not allowed to patch nodes", `resources ["nodes"], verbs [patch]`, "deploy/kustomize/dsr"}
	missing := slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(problem.Message, word) })
	if missing || problem.Object != "Node node1" || problem.Reason != reasonForbidden {
		t.Errorf("problem: %s", fmt.Sprint(problem))
	}
}
