// Package parity holds a differential test: histories of random Services, EndpointSlices and Nodes go through kube-proxy's
// own trackers and through Weir's controller, and both must then send the same traffic to the same endpoints. Where Weir
// decides otherwise on purpose, deviations_test.go says so and why; nothing else may differ.
package parity
