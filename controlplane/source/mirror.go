package source

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	netutils "k8s.io/utils/net"
	"k8s.io/utils/ptr"
)

// labelLeader marks Endpoints that are a lock of old leader elections, and no endpoints at all.
const labelLeader = "control-plane.alpha.kubernetes.io/leader"

// The API calls Endpoints deprecated, and hand-written manifests go on having them.
type (
	endpoints       = corev1.Endpoints //lint:ignore SA1019 see above
	endpointAddress = corev1.EndpointAddress
)

// mirrors tells whether Endpoints are turned into slices: those of a Service without selector are, unless
// they ask not to be. Those of a Service with selector come with slices of their own.
func mirrors(from *endpoints, service *corev1.Service) bool {
	if from == nil || service == nil || len(service.Spec.Selector) > 0 {
		return false
	}
	_, lock := from.Annotations[labelLeader]
	return !lock && from.Labels[discoveryv1.LabelSkipMirror] != "true"
}

// mirror turns Endpoints into slices: one for each subset and family (rule S11).
func mirror(from *endpoints) []*discoveryv1.EndpointSlice {
	var slices []*discoveryv1.EndpointSlice
	for i, subset := range from.Subsets {
		for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
			slice := newMirror(from, i, family)
			for _, address := range subset.Addresses {
				addMirrored(slice, address, true)
			}
			for _, address := range subset.NotReadyAddresses {
				addMirrored(slice, address, false)
			}
			if len(slice.Endpoints) == 0 {
				continue
			}
			for _, port := range subset.Ports {
				slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
					Name: ptr.To(port.Name), Port: ptr.To(port.Port), Protocol: ptr.To(port.Protocol),
					AppProtocol: port.AppProtocol,
				})
			}
			slices = append(slices, slice)
		}
	}
	return slices
}

// newMirror makes an empty slice, of a name that no slice in a manifest can have.
func newMirror(from *endpoints, subset int, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	labels := map[string]string{}
	for name, value := range from.Labels {
		labels[name] = value
	}
	labels[discoveryv1.LabelServiceName] = from.Name
	labels[discoveryv1.LabelManagedBy] = "endpointslicemirroring-controller.k8s.io"
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       from.Namespace,
			Name:            fmt.Sprintf("Endpoints/%s/%d/%s", from.Name, subset, family),
			Labels:          labels,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Endpoints", Name: from.Name}},
		},
		AddressType: family,
	}
}

// addMirrored adds an address to the slice of its family. One that is none goes with IPv4, to be refused
// like any other.
func addMirrored(slice *discoveryv1.EndpointSlice, address endpointAddress, ready bool) {
	family := discoveryv1.AddressTypeIPv4
	if netutils.IsIPv6String(address.IP) {
		family = discoveryv1.AddressTypeIPv6
	}
	if family != slice.AddressType {
		return
	}
	slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
		Addresses:  []string{address.IP},
		Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready)},
		NodeName:   address.NodeName,
		TargetRef:  address.TargetRef,
	})
}
