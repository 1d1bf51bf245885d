package parity

import (
	"maps"
	"strings"

	"sigs.k8s.io/yaml"
)

// describe returns all objects of a history as YAML, which `weir agent --manifests` can read.
func (h *history) describe() string {
	var objects []any
	for _, node := range h.kubeProxy.nodes {
		objects = append(objects, node)
	}
	for service := range maps.Values(h.services) {
		objects = append(objects, service)
	}
	for _, slice := range h.kubeProxy.deviator.inOrder() {
		objects = append(objects, slice)
	}
	var documents []string
	for _, object := range objects {
		text, err := yaml.Marshal(object)
		if err != nil {
			text = []byte(err.Error())
		}
		documents = append(documents, string(text))
	}
	return strings.Join(documents, "---\n")
}
