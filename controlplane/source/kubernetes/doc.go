// Package kubernetes follows the objects that services are made of on an API server: Services and EndpointSlices with
// the label selectors of kube-proxy, and the Node that the agent runs on; with a socket edge also that Node's Pods, and the
// Namespaces with a label for them; with DSR also what the annotations of all other Nodes say.
//
// What the server last said stays in the store while the server cannot be reached, and the maps outlive the agent
// besides. Whenever the connection has been lost, the objects are listed anew: those that the list does not have are
// gone. The store counts as synced once every kind has been listed, so that nothing is written before (rule S09).
//
// Objects are stripped of what nothing is made of before they are kept: managed fields and the like are most of
// their size. A long list is decoded object by object as it comes in, so that it is never there whole.
package kubernetes
