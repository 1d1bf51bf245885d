// Package source reads the Kubernetes objects that services are made of.
//
// # Manifests
//
// A directory of ordinary Kubernetes YAML and JSON: v1 Service, Endpoints, Node, Pod, Namespace and
// List, and discovery.k8s.io/v1 EndpointSlice, any number of documents in a file. Files are named *.yaml, *.yml or
// *.json; hidden files, editors' temporary files and sub-directories are not read, and other kinds are
// ignored with a line in the log. Symbolic links are followed, and a directory laid out like a mounted
// ConfigMap (..data) is taken in when it is swapped; what another link points to is read when the link
// changes, not when its target does.
//
// The directory says what there is: a file that is added, changed or removed adds, changes or removes its
// objects. It is read as an API server would read it: missing fields have the API's defaults, a missing
// namespace is "default", fields nobody knows are reported. There is no allocator: clusterIP, nodePort and
// status.loadBalancer are what the file says. Without a creationTimestamp an object counts as older than any
// with one, and among such objects namespace and name decide. An object that stands in two places is taken
// from the file whose name comes first, within a file from the document that does.
//
// Writing a file is not an outage. A file is read when no process has it open for writing, so its writer may
// take its time. A document that cannot be read is a problem, and while a file has one, none of the objects
// goes that the file had before; all others are as the file says. Objects that vanish go after a moment only,
// a file that became empty after a second, since that is how many programs begin to write. A directory that is
// missing says nothing: what it last said stays. With Options.Saved, what a file said when it was last free of
// errors outlives the agent, too.
//
// Endpoints of a Service without a selector are turned into EndpointSlices as the mirroring controller of a
// cluster would.
package source
