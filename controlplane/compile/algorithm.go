package compile

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/maps"
)

// annotationAlgorithm says how a Service picks a backend for a new flow: random, maglev or least-connections.
const annotationAlgorithm = "weir-lb.io/algorithm"

// algorithms are how the tables of a Service are picked from.
type algorithms struct{ inside, outside maps.Algorithm }

// readAlgorithms reads the annotation; what is unknown counts as not given. Then traffic from inside picks by chance, as
// with kube-proxy, and all nodes agree about that from outside.
func readAlgorithms(service *corev1.Service, problems *problems) algorithms {
	value, given := service.Annotations[annotationAlgorithm]
	switch value {
	case "random":
		return algorithms{maps.AlgorithmRandom, maps.AlgorithmRandom}
	case "least-connections":
		return algorithms{maps.AlgorithmLeastConnections, maps.AlgorithmLeastConnections}
	case "maglev":
		return algorithms{maps.AlgorithmMaglev, maps.AlgorithmMaglev}
	}
	if given {
		problems.add("AlgorithmUnknown", "%s %q is unknown and counts as not given: use random, maglev or least-connections", annotationAlgorithm, value)
	}
	return algorithms{inside: maps.AlgorithmRandom, outside: maps.AlgorithmMaglev}
}
