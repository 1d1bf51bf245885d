package kubernetes

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/weir-lb/weir/controlplane/compile"
)

// resource is a kind of object as the API server's permissions name it, or some of them that are followed apart.
type resource struct{ group, name, some string }

var (
	services       = resource{"", "services", ""}
	endpointSlices = resource{"discovery.k8s.io", "endpointslices", ""}
	nodes          = resource{"", "nodes", ""} // the agent's own
	otherNodes     = resource{"", "nodes", "others"}
	serviceCIDRs   = resource{"networking.k8s.io", "servicecidrs", ""}
	pods           = resource{"", "pods", ""}
	namespaces     = resource{"", "namespaces", ""}
)

// String returns the resource as kubectl names it.
func (r resource) String() string {
	if r.group == "" {
		return r.name
	}
	return r.name + "." + r.group
}

// Why a server cannot be followed.
const (
	reasonForbidden    = "Forbidden"
	reasonUnauthorized = "Unauthorized"
	reasonNotServed    = "ResourceNotServed"
	reasonCertificate  = "CertificateRefused"
	reasonServer       = "ServerError"
	reasonUnreachable  = "Unreachable"
)

// request is one of those that must succeed for the server to be followed.
type request struct {
	resource resource
	verb     string
}

// failures remembers which requests fail, and why.
type failures struct {
	advice string
	log    *zap.Logger

	mu      sync.Mutex
	current map[request]compile.Problem
}

func newFailures(advice string, log *zap.Logger) *failures {
	return &failures{advice: advice, log: log, current: map[request]compile.Problem{}}
}

// note takes in a failure and returns its reason; empty of one that is part of watching.
func (f *failures) note(r resource, verb string, err error) (reason string) {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsTooManyRequests(err) || apierrors.IsInvalid(err) {
		return ""
	}
	problem := f.explain(r, verb, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	failing := request{r, verb}
	if before := f.current[failing]; before.Reason != problem.Reason {
		f.log.Error("follow the API server", zap.String("reason", problem.Reason), zap.String("problem", problem.Message))
	}
	f.current[failing] = problem
	return problem.Reason
}

// clear notes that a request has succeeded. Who can watch can list, or needs not.
func (f *failures) clear(r resource, verb string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.current)
	delete(f.current, request{r, verb})
	if verb == "watch" {
		delete(f.current, request{r, "list"})
	}
	if before > 0 && len(f.current) == 0 {
		f.log.Info("the API server is followed again")
	}
}

// explain says what a failure means and what to do.
func (f *failures) explain(r resource, verb string, err error) compile.Problem {
	return explain(r, verb, "the ClusterRole of deploy/kustomize, which", "list, watch", f.advice, err)
}

// explain says what a failure means, and what to do: to give the agent a role that has those verbs, or what is advised where
// the server cannot be reached.
func explain(r resource, verb, role, verbs, advice string, err error) compile.Problem {
	problem := func(reason, format string, args ...any) compile.Problem {
		return compile.Problem{Object: "API server", Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	var unknownCA x509.UnknownAuthorityError
	var wrongHost x509.HostnameError
	var unverified *tls.CertificateVerificationError
	switch {
	case apierrors.IsForbidden(err):
		return problem(reasonForbidden, "not allowed to %s %s (%v): give the agent %s has apiGroups [%q], resources [%q], verbs [%s]",
			verb, r, err, role, r.group, r.name, verbs)
	case apierrors.IsUnauthorized(err):
		return problem(reasonUnauthorized, "the credentials are not accepted (%v): renew the kubeconfig or the token; what is known is served meanwhile", err)
	case apierrors.IsNotFound(err):
		return problem(reasonNotServed, "the server has no %s: Kubernetes 1.21 or newer is needed", r)
	case errors.As(err, &unknownCA), errors.As(err, &wrongHost), errors.As(err, &unverified):
		return problem(reasonCertificate, "the server's certificate is not trusted (%v): correct certificate-authority or server in the kubeconfig", err)
	case apierrors.ReasonForError(err) != "":
		return problem(reasonServer, "the server does not answer as it should (%v): it is asked again, and what is known is served meanwhile", err)
	default:
		return problem(reasonUnreachable, "the server cannot be reached (%s): it is tried again, and what is known is served meanwhile%s", brief(err), advice)
	}
}

// brief returns an error without the URL of the request, which differs where the reason is the same.
func brief(err error) string {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		if !strings.Contains(err.Error(), "://") {
			break
		}
		err = inner
	}
	return err.Error()
}

// problems lists what fails, each thing once.
func (f *failures) problems() []compile.Problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	problems := make([]compile.Problem, 0, len(f.current))
	for _, problem := range f.current {
		problems = append(problems, problem)
	}
	slices.SortFunc(problems, func(a, b compile.Problem) int {
		return cmp.Or(strings.Compare(a.Reason, b.Reason), strings.Compare(a.Message, b.Message))
	})
	return slices.Compact(problems)
}

// sentence returns the first of the problems.
func (f *failures) sentence() string {
	for _, problem := range f.problems() {
		return "API server: " + problem.Message
	}
	return ""
}

// failing tells whether a request for a resource fails.
func (f *failures) failing(r resource) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for failing := range f.current {
		if failing.resource == r {
			return true
		}
	}
	return false
}
