package compile

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// annotationRemoved says what becomes of TCP connections whose endpoint leaves the Service: keep, reset or
// drain=<duration>.
const annotationRemoved = "weir-lb.io/removed-endpoints"

// RemovedEndpoints is what becomes of TCP connections whose backend leaves the service. They go on, unless said otherwise
// (rule X01); UDP flows always end (rule D01).
type RemovedEndpoints struct {
	End   bool          // the connections are reset
	After time.Duration // so long after the backend has left; 0: at once
}

// readRemoved reads the annotation; what is unknown counts as keep.
func readRemoved(service *corev1.Service, problems *problems) RemovedEndpoints {
	value, given := service.Annotations[annotationRemoved]
	text, drains := strings.CutPrefix(value, "drain=")
	switch {
	case !given || value == "keep":
		return RemovedEndpoints{}
	case value == "reset":
		return RemovedEndpoints{End: true}
	case drains:
		if after, err := time.ParseDuration(text); err == nil && after > 0 {
			return RemovedEndpoints{End: true, After: after}
		}
	}
	problems.add("PolicyUnknown", "%s %q is unknown and counts as keep: use keep, reset or drain= with a duration, like drain=30s", annotationRemoved, value)
	return RemovedEndpoints{}
}
