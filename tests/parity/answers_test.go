package parity

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// origin is where a new connection comes from.
type origin string

const (
	fromPod     origin = "pod"     // of this node
	fromNode    origin = "node"    // this node itself
	fromOutside origin = "outside" // whatever arrives at the node
)

var origins = []origin{fromPod, fromNode, fromOutside}

// question is a new connection, of which it is asked what becomes of it.
type question struct {
	family   corev1.IPFamily
	protocol corev1.Protocol
	address  string // "NodePort" for whatever address of the node
	port     int
	origin   origin
	client   client
}

func (q question) String() string {
	return fmt.Sprintf("%s %s:%d %s from %s %v", q.family, q.address, q.port, q.protocol, q.origin, q.client)
}

// answer is what becomes of it. No answer at all: it is no Service's.
type answer struct {
	verdict   verdict
	endpoints []destination // one of them, by chance
	affinity  int           // seconds for which the client keeps it
}

type verdict string

const (
	forwarded verdict = "forwarded"
	rejected  verdict = "rejected"
	dropped   verdict = "dropped"
)

type destination struct {
	address     netip.AddrPort
	masqueraded bool
	local       bool // on this node
}

func (d destination) String() string {
	if d.masqueraded {
		return d.address.String() + " masqueraded"
	}
	return d.address.String()
}

// isLike compares what a text of them would.
func (d destination) isLike(other destination) bool {
	return d.address == other.address && d.masqueraded == other.masqueraded
}

func (a answer) String() string {
	if a.verdict != forwarded {
		return string(a.verdict)
	}
	var texts []string
	for _, d := range a.endpoints {
		texts = append(texts, d.String())
	}
	slices.Sort(texts)
	text := "forwarded to " + strings.Join(texts, ", ")
	if a.affinity > 0 {
		text += fmt.Sprintf(" for %d s", a.affinity)
	}
	return text
}

// outcome is all that is compared.
type outcome struct {
	answers      map[question]answer
	healthChecks map[string]string // by Service: "port 32000, 2 local"
}

// usualQuestions is how many there are of a cluster: maps that grow take time.
const usualQuestions = 300

func newOutcome() outcome {
	return outcome{answers: make(map[question]answer, usualQuestions), healthChecks: map[string]string{}}
}

// differences says in what two outcomes differ, a line each.
func differences(kubeProxy, weir outcome) []string {
	var lines []string
	for q, want := range kubeProxy.answers {
		if got, is := weir.answers[q]; !is || !want.isLike(got) {
			lines = append(lines, difference(q, want.String(), text(weir.answers, q))...)
		}
	}
	for q, got := range weir.answers {
		if _, is := kubeProxy.answers[q]; !is {
			lines = append(lines, difference(q, text(kubeProxy.answers, q), got.String())...)
		}
	}
	for _, service := range keys(kubeProxy.healthChecks, weir.healthChecks) {
		if want, got := kubeProxy.healthChecks[service], weir.healthChecks[service]; want != got {
			lines = append(lines, fmt.Sprintf("health check of %s\n\tkube-proxy: %s\n\tWeir:       %s", service, want, got))
		}
	}
	slices.Sort(lines)
	return lines
}

// isLike tells of most answers that say the same that they do, without a text being made.
func (a answer) isLike(b answer) bool {
	return a.verdict == b.verdict && a.affinity == b.affinity && slices.EqualFunc(a.endpoints, b.endpoints, destination.isLike)
}

// difference says how two answers to a question differ; nothing if they do not.
func difference(q question, kubeProxy, weir string) []string {
	if kubeProxy == weir {
		return nil
	}
	return []string{fmt.Sprintf("%s\n\tkube-proxy: %s\n\tWeir:       %s", q, kubeProxy, weir)}
}

func text(answers map[question]answer, q question) string {
	if a, is := answers[q]; is {
		return a.String()
	}
	return "no Service's"
}

func keys(a, b map[string]string) []string {
	var all []string
	for key := range a {
		all = append(all, key)
	}
	for key := range b {
		all = append(all, key)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
