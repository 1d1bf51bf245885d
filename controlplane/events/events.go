// Package events tells the owners of Services, as Events on them, what is asked for and not done.
package events

import (
	"context"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// tellAgain is how long a problem that stands, or comes back, is not told again. An API server forgets Events after
// an hour.
const tellAgain = 30 * time.Minute

// Recorder writes Events. Those of one Service are aggregated and limited in their rate, as client-go does it.
type Recorder struct {
	recorder record.EventRecorder
	store    *store.Store

	mu   sync.Mutex
	told map[compile.Problem]time.Time
}

// Start returns a recorder that writes to an API server until the context ends, as the agent of a node.
func Start(ctx context.Context, client kubernetes.Interface, node string, objects *store.Store) *Recorder {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	context.AfterFunc(ctx, broadcaster.Shutdown)
	return newRecorder(broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "weir", Host: node}), objects)
}

func newRecorder(recorder record.EventRecorder, objects *store.Store) *Recorder {
	return &Recorder{recorder: recorder, store: objects, told: map[compile.Problem]time.Time{}}
}

// Report takes in all problems that there are, and tells those that are new. It does not wait for anything.
func (r *Recorder) Report(problems []compile.Problem, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for problem, at := range r.told {
		if now.Sub(at) >= tellAgain {
			delete(r.told, problem)
		}
	}
	for _, problem := range problems {
		if _, known := r.told[problem]; known {
			continue
		}
		service := r.serviceOf(problem.Object)
		if service == nil {
			continue
		}
		r.told[problem] = now
		r.recorder.Event(service, corev1.EventTypeWarning, problem.Reason, message(problem))
	}
}

// message says which object it is about, if that is not the Service itself.
func message(problem compile.Problem) string {
	if strings.HasPrefix(problem.Object, "Service ") {
		return problem.Message
	}
	return problem.Object + ": " + problem.Message
}

// serviceOf returns the Service that an object of a problem belongs to; nil if there is none.
func (r *Recorder) serviceOf(object string) *corev1.ObjectReference {
	kind, name, _ := strings.Cut(object, " ")
	namespace, name, found := strings.Cut(name, "/")
	if !found {
		return nil
	}
	key := store.Key{Namespace: namespace, Name: name}
	switch kind {
	case "Service", "Endpoints":
	case "EndpointSlice":
		slice := r.store.Slice(key)
		if slice == nil {
			return nil
		}
		key.Name = slice.Labels[discoveryv1.LabelServiceName]
	default:
		return nil
	}
	service := r.store.Get(key).Service
	if service == nil {
		return nil
	}
	return &corev1.ObjectReference{
		APIVersion: "v1", Kind: "Service", Namespace: key.Namespace, Name: key.Name,
		UID: service.UID, ResourceVersion: service.ResourceVersion,
	}
}
