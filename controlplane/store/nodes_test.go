package store

import (
	"fmt"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// TestOnNodes finds the Services that have an endpoint on certain nodes, in whichever slice, and takes no work.
func TestOnNodes(t *testing.T) {
	s := New(gather)
	s.Update(services("a", "b", "c", "none"))
	for name, nodes := range map[string][]string{"a-1": {"n1"}, "a-2": {"n2", "n3"}, "b-1": {"n1", ""}, "c-1": {"n3"}, "gone-1": {"n3"}} {
		owned := slice(name, name[:len(name)-2])
		for _, node := range nodes {
			endpoint := discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}}
			if node != "" {
				endpoint.NodeName = ptr.To(node)
			}
			owned.Endpoints = append(owned.Endpoints, endpoint)
		}
		s.Update(sliceBatch(name, owned))
	}
	s.Synced()
	for names, want := range map[string]string{
		"n1": "[a[a-1 a-2] b[b-1]]", "n2": "[a[a-1 a-2]]", "n3": "[a[a-1 a-2] c[c-1]]", "n4": "[]",
	} {
		if got := describe(Work{Items: s.OnNodes(map[string]struct{}{names: {}})}); got != want {
			t.Errorf("on %s: %s, want %s", names, got, want)
		}
	}
	if got := fmt.Sprint(len(next(t, s).Items)); got != "5" {
		t.Errorf("%s items of work, want 5", got)
	}
}
