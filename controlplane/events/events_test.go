package events

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// TestReport: a problem of a Service, or of something that belongs to it, is told once in a while; others are nobody's.
func TestReport(t *testing.T) {
	objects := store.New(0)
	key, slice := store.Key{Namespace: "default", Name: "web"}, store.Key{Namespace: "default", Name: "web-x"}
	objects.Update(store.Batch{
		Services: map[store.Key]*corev1.Service{key: {}},
		Slices: map[store.Key]*discoveryv1.EndpointSlice{slice: {
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		}},
	})
	recorder := record.NewFakeRecorder(100)
	r := newRecorder(recorder, objects)
	of := func(object string) compile.Problem {
		return compile.Problem{Object: object, Reason: "Reason", Message: "what and why"}
	}
	told := func() (events []string) {
		for {
			select {
			case event := <-recorder.Events:
				events = append(events, event)
			default:
				return events
			}
		}
	}
	start := time.Now()
	all := []compile.Problem{
		of("Service default/web"), of("EndpointSlice default/web-x"), of("Endpoints default/web"),
		of("Service default/gone"), of("EndpointSlice default/gone"), of("Node node1"), of("API server"),
	}
	for _, step := range []struct {
		name     string
		after    time.Duration
		problems []compile.Problem
		want     []string
	}{
		{"at first", 0, all, []string{
			"Warning Reason what and why",
			"Warning Reason EndpointSlice default/web-x: what and why",
			"Warning Reason Endpoints default/web: what and why",
		}},
		{"it stands", time.Minute, all, nil},
		{"it is gone", 2 * time.Minute, nil, nil},
		{"it is back", 3 * time.Minute, all[:1], nil},
		{"later", tellAgain, all[:1], []string{"Warning Reason what and why"}},
	} {
		r.Report(step.problems, start.Add(step.after))
		if got := told(); !slices.Equal(got, step.want) {
			t.Errorf("%s: told %q, want %q", step.name, got, step.want)
		}
	}
}
