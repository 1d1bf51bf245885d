package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"

	"github.com/weir-lb/weir/controlplane/compile"
)

// fieldManager is whom the API server names as the owner of what the agent writes.
const fieldManager = "weir"

// Annotator writes annotations of one Node.
type Annotator struct {
	Client clientset.Interface
	Node   string
	Advice string // what to do when the server cannot be reached
}

// Annotate gives the Node an annotation; an empty value removes it.
func (a Annotator) Annotate(ctx context.Context, key, value string) error {
	annotation := map[string]*string{key: &value}
	if value == "" {
		annotation[key] = nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotation}})
	if err != nil {
		return fmt.Errorf("encode the annotation: %w", err)
	}
	_, err = a.Client.CoreV1().Nodes().Patch(ctx, a.Node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}

// Explain says what a failure means, and what to do.
func (a Annotator) Explain(err error) compile.Problem {
	problem := explain(nodes, "patch", "the ClusterRole of deploy/kustomize/dsr, which", "patch", a.Advice, err)
	problem.Object = "Node " + a.Node
	return problem
}
