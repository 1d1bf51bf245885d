// Package e2e runs agents of the lab's nodes against a real control plane: etcd, kube-apiserver and
// kube-controller-manager in the network namespace of the lab's client.
//
//	  client                         node1                              node2
//	┌─────────────────────┐        ┌───────────────────┐              ┌───────────────────┐
//	│ etcd                │ .10 .1 │ weir agent        │              │ weir agent        │
//	│ kube-apiserver :6443├────────┤ pods web1, web2,  ├──────────────┤ pods web3, web4   │
//	│ controller-manager  │        │ toolbox           │              │                   │
//	└─────────────────────┘        └───────────────────┘              └───────────────────┘
//
// Processes and pods of node1 are served by the socket edge (their sockets have cgroups of the lab), pods of node2 by the
// pod edge. kube-proxy can take the place of node1's agent.
//
// The agents have the ServiceAccount and the permissions of deploy/kustomize, and the capabilities of its DaemonSet. There is no kubelet and
// no scheduler: tests make Pod objects for the pods that the lab has. Container does what a kubelet and its runtime do for
// the DaemonSet's pod, with the image that `make image` builds. The binaries are built by `make e2e-binaries` from the modules
// beside this package.
package e2e
