package compile

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestRemovedEndpoints reads what becomes of connections whose endpoint leaves.
func TestRemovedEndpoints(t *testing.T) {
	for value, want := range map[string]RemovedEndpoints{
		"keep": {}, "reset": {End: true}, "drain=1m30s": {End: true, After: 90 * time.Second},
		"": {}, "drain": {}, "drain=": {}, "drain=-1s": {}, "drain=0s": {}, "RESET": {},
	} {
		problems := &problems{}
		service := &corev1.Service{}
		service.Annotations = map[string]string{annotationRemoved: value}
		got := readRemoved(service, problems)
		if got != want {
			t.Errorf("%q: got %+v, want %+v", value, got, want)
		}
		if known := got != (RemovedEndpoints{}) || value == "keep"; known != (len(problems.list) == 0) {
			t.Errorf("%q: problems %v", value, problems.list)
		}
	}
	problems := &problems{}
	if got := readRemoved(&corev1.Service{}, problems); got != (RemovedEndpoints{}) || len(problems.list) > 0 {
		t.Errorf("without the annotation: %+v, %v", got, problems.list)
	}
}
