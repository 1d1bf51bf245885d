package namespaces

import (
	"fmt"
	"net/netip"

	"github.com/weir-lb/weir/controlplane/compile"
)

// pods says which network namespaces and cgroups are left to the packet edges.
type pods struct {
	byAddress map[netip.Addr]bool // of pods with a network namespace of their own -> whether it is left
	host      []compile.Pod       // in the node's namespace, that are to be left
	waiting   []compile.Pod       // to be left, and without an address yet
	left      []compile.Pod       // to be left, by their addresses
}

// sortPods takes in the pods of the node.
func sortPods(all []compile.Pod) pods {
	p := pods{byAddress: map[netip.Addr]bool{}}
	for _, pod := range all {
		switch {
		case pod.HostNetwork && pod.LeaveSockets:
			p.host = append(p.host, pod)
		case pod.HostNetwork:
		case pod.LeaveSockets && len(pod.Addresses) == 0:
			p.waiting = append(p.waiting, pod)
		default:
			if pod.LeaveSockets {
				p.left = append(p.left, pod)
			}
			for _, address := range pod.Addresses {
				// Two pods of one address: what is left is served as well, at the pod edge.
				p.byAddress[address] = p.byAddress[address] || pod.LeaveSockets
			}
		}
	}
	return p
}

// claim tells whether a pod has the namespace, and whether its sockets are to be left.
func (p pods) claim(n namespace) (claimed, left bool) {
	for address := range n.addresses {
		if leave, known := p.byAddress[address]; known {
			claimed, left = true, left || leave
		}
	}
	return claimed, left
}

// unresolved returns the pods to be left whose namespace has not been found yet: any new one may be theirs.
func (p pods) unresolved(found map[inode]namespace) []compile.Pod {
	missing := append([]compile.Pod{}, p.waiting...)
	for _, pod := range p.left {
		if !isFound(pod, found) {
			missing = append(missing, pod)
		}
	}
	return missing
}

func isFound(pod compile.Pod, found map[inode]namespace) bool {
	for _, n := range found {
		for _, address := range pod.Addresses {
			if _, has := n.addresses[address]; has {
				return true
			}
		}
	}
	return false
}

// problemCgroup says that a pod of the node's namespace cannot be told from others.
func problemCgroup(pod compile.Pod, root string) compile.Problem {
	return compile.Problem{
		Object: "Pod " + pod.Name, Reason: "SocketsServed",
		Message: fmt.Sprintf("it asks for socket-lb off and has the node's network, and below %s no cgroup has its uid %s: its sockets are served as the node's are", root, pod.UID),
	}
}
