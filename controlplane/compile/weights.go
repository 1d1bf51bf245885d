package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// The annotations that say which share of the new flows an endpoint gets, relative to the others': of a Service, for
// single endpoints ("10.1.1.5=3,10.1.2.7=0"), and of an EndpointSlice, for all of its own ("3").
const (
	annotationWeights = "weir-lb.io/weights"
	annotationWeight  = "weir-lb.io/weight"
)

// An endpoint has weight 1 where nothing is said. One of weight 0 gets no new flows, unless all have that.
const (
	weightStandard = 1
	weightMost     = 1000
)

// weights are those of a Service's endpoints. Nil: nothing is said of any.
type weights map[netip.Addr]uint32

// readWeights reads the Service's annotation. What cannot be read counts as if it were not there.
func readWeights(service *corev1.Service, all []*discoveryv1.EndpointSlice, problems *problems) weights {
	var w weights
	if slices.ContainsFunc(all, func(s *discoveryv1.EndpointSlice) bool { return s.Annotations[annotationWeight] != "" }) {
		w = weights{}
	}
	for entry := range strings.SplitSeq(service.Annotations[annotationWeights], ",") {
		if strings.TrimSpace(entry) == "" {
			continue
		}
		text, value, _ := strings.Cut(entry, "=")
		address, valid := parseAddress(strings.TrimSpace(text))
		weight, usable := parseWeight(value)
		if !valid || !usable {
			problems.add("WeightRefused", "%s: %q is not address=weight with a weight between 0 and %d, and is ignored", annotationWeights, entry, weightMost)
			continue
		}
		if w == nil {
			w = weights{}
		}
		w[address] = weight
	}
	return w
}

// ofSlice returns the weight of a slice's endpoints for which the Service says nothing.
func (w weights) ofSlice(slice *discoveryv1.EndpointSlice, problems *problems) uint32 {
	if w == nil {
		return 0
	}
	text := slice.Annotations[annotationWeight]
	if text == "" {
		return weightStandard
	}
	weight, usable := parseWeight(text)
	if !usable {
		problems.addTo(sliceObject(slice), "WeightRefused", "%s %q is not a weight between 0 and %d: its endpoints have weight %d", annotationWeight, text, weightMost, weightStandard)
		return weightStandard
	}
	return weight
}

// of returns the weight of an endpoint.
func (w weights) of(address netip.Addr, ofSlice uint32) uint32 {
	if weight, given := w[address]; given {
		return weight
	}
	return ofSlice
}

func parseWeight(text string) (weight uint32, usable bool) {
	number, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	return uint32(number), err == nil && number <= weightMost
}
