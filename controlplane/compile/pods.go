package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// LabelSocketLB, as an annotation of a Pod or a label of its Namespace, says whether the Pod's sockets are served at the
// socket edge ("on") or its packets at the pod edge ("off"): service meshes and sandboxes want the latter.
const LabelSocketLB = "weir-lb.io/socket-lb"

// Pod is what must be known of a Pod of the node to tell its sockets from others.
type Pod struct {
	Name         string // namespace/name
	UID          string
	Addresses    []netip.Addr
	HostNetwork  bool // it is in the node's network namespace
	LeaveSockets bool // its packets are served at the pod edge, not its sockets
	HostPorts    []HostPort
}

// HostPort is a port of the node that leads to a Pod.
type HostPort struct {
	Protocol Protocol
	Number   uint16
}

// Pods returns the Pods that run on a node, in order of their names.
func Pods(all []*corev1.Pod, namespaces map[string]*corev1.Namespace, node string) ([]Pod, []Problem) {
	var pods []Pod
	problems := &problems{}
	for _, pod := range all {
		if pod.Spec.NodeName != "" && pod.Spec.NodeName != node {
			continue
		}
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue // its addresses may be another one's by now
		}
		pods = append(pods, Pod{
			Name: pod.Namespace + "/" + pod.Name, UID: string(pod.UID), Addresses: podAddresses(pod),
			HostNetwork: pod.Spec.HostNetwork, LeaveSockets: leavesSockets(pod, namespaces[pod.Namespace], problems),
			HostPorts: hostPorts(pod),
		})
	}
	slices.SortFunc(pods, func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	return pods, problems.list
}

func hostPorts(pod *corev1.Pod) []HostPort {
	var ports []HostPort
	for _, container := range pod.Spec.Containers {
		for _, port := range container.Ports {
			if port.HostPort > 0 && port.HostPort <= 65535 {
				ports = append(ports, HostPort{parseProtocol(string(port.Protocol)), uint16(port.HostPort)})
			}
		}
	}
	return ports
}

func podAddresses(pod *corev1.Pod) []netip.Addr {
	texts := []string{pod.Status.PodIP}
	for _, ip := range pod.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	var addresses []netip.Addr
	for _, text := range texts {
		if address, valid := parseAddress(text); valid && !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// leavesSockets reads the annotation of the Pod, else the label of its Namespace. A value that is unknown counts as off:
// the pod edge serves every pod.
func leavesSockets(pod *corev1.Pod, namespace *corev1.Namespace, problems *problems) bool {
	problems.object = fmt.Sprintf("Pod %s/%s", pod.Namespace, pod.Name)
	value, given := pod.Annotations[LabelSocketLB]
	if !given && namespace != nil {
		problems.object = "Namespace " + namespace.Name
		value, given = namespace.Labels[LabelSocketLB]
	}
	if !given || value == "on" {
		return false
	}
	if value != "off" {
		problems.add("PolicyUnknown", "%s %q is unknown and counts as off, so packets are served at the pod edge: use on or off", LabelSocketLB, value)
	}
	return true
}
