package metrics

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
	"github.com/weir-lb/weir/maps"
)

// nothing collects nothing.
type nothing struct{}

func (nothing) Describe(out chan<- *prometheus.Desc) { out <- mapEntries }
func (nothing) Collect(chan<- prometheus.Metric)     {}

func (nothing) Services() (func(io.Writer) error, error) {
	return func(io.Writer) error { return nil }, nil
}

// TestNoLocalEndpoints counts services with endpoints in the cluster, and none here, by policy (rule P05).
func TestNoLocalEndpoints(t *testing.T) {
	backend := []compile.Backend{{}}
	id := func(scope compile.Scope, family compile.Family) compile.ID {
		return compile.ID{Scope: scope, Family: family}
	}
	m := New("v1", nothing{}, func() State {
		return State{All: slices.Values([]compile.Service{
			{ID: id(compile.ScopeAll, compile.IPv4)},                                         // internal
			{ID: id(compile.ScopeAll, compile.IPv4), NoEndpoints: true},                      // none anywhere
			{ID: id(compile.ScopeAll, compile.IPv6), Inside: backend},                        // fine
			{ID: id(compile.ScopeExternal, compile.IPv6), Inside: backend},                   // external
			{ID: id(compile.ScopeExternal, compile.IPv6), Inside: backend, Outside: backend}, // fine
		})}
	})
	text := scrape(t, m)
	for labels, want := range map[string]int{
		`ip_family="IPv4",traffic_policy="internal"`: 1, `ip_family="IPv4",traffic_policy="external"`: 0,
		`ip_family="IPv6",traffic_policy="internal"`: 0, `ip_family="IPv6",traffic_policy="external"`: 1,
	} {
		line := fmt.Sprintf("kubeproxy_sync_proxy_rules_no_local_endpoints_total{%s} %d", labels, want)
		if !slices.Contains(text, line) {
			t.Errorf("no line %s", line)
		}
	}
}

// TestChanges: the names that dashboards query for what waits.
func TestChanges(t *testing.T) {
	m := New("v1", nothing{}, func() State {
		return State{All: slices.Values([]compile.Service(nil)), Changes: store.Changes{Services: 12, Slices: 34}, Waiting: store.Changes{Services: 1, Slices: 2}}
	})
	text := scrape(t, m)
	for _, line := range []string{
		"kubeproxy_sync_proxy_rules_service_changes_total 12", "kubeproxy_sync_proxy_rules_endpoint_changes_total 34",
		"kubeproxy_sync_proxy_rules_service_changes_pending 1", "kubeproxy_sync_proxy_rules_endpoint_changes_pending 2",
	} {
		if !slices.Contains(text, line) {
			t.Errorf("no line %s", line)
		}
	}
}

// scrape returns the lines that Prometheus would get.
func scrape(t *testing.T, m *Metrics) []string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if answer.Code != 200 {
		t.Fatalf("%d: %s", answer.Code, answer.Body)
	}
	return strings.Split(answer.Body.String(), "\n")
}

// TestE12_Programming: each change of a slice counts once, from its trigger; what was before the agent does not.
func TestE12_Programming(t *testing.T) {
	start := time.Now()
	var counted []string
	p := NewProgramming(start, func(family string, took time.Duration) { counted = append(counted, fmt.Sprint(family, " ", took)) })
	key := types.NamespacedName{Namespace: "default", Name: "web"}
	slice := func(name string, trigger time.Time) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Name:        name,
				Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: trigger.Format(time.RFC3339Nano)},
			},
			AddressType: discoveryv1.AddressTypeIPv6,
		}
	}
	old, first, second := start.Add(-time.Hour), start.Add(time.Second), start.Add(2*time.Second)
	service := &corev1.Service{}
	apply := func(after time.Duration, service *corev1.Service, slices ...*discoveryv1.EndpointSlice) {
		p.Applied(key, service, slices, start.Add(after))
	}
	apply(time.Second, service, slice("a", old))
	apply(2*time.Second, service, slice("a", first), slice("b", old))
	apply(3*time.Second, service, slice("a", first), slice("b", old)) // the Service changed
	apply(4*time.Second, service, slice("a", second), &discoveryv1.EndpointSlice{})
	apply(5*time.Second, nil)
	if want := []string{"IPv6 1s", "IPv6 2s"}; !slices.Equal(counted, want) {
		t.Errorf("counted %q, want %q", counted, want)
	}
	if len(p.seen) > 0 {
		t.Error("a Service that is gone is remembered")
	}
}

// some are services, and a registry that can be made to fail.
type some struct {
	nothing
	broken bool
}

func (s some) Collect(out chan<- prometheus.Metric) {
	if s.broken {
		out <- prometheus.NewInvalidMetric(mapEntries, errors.New("no such map"))
	}
}

func (s some) Services() (func(io.Writer) error, error) {
	id := compile.ID{Namespace: "default", Name: "web", Port: "a\"b", Protocol: compile.TCP, Family: compile.IPv4}
	service := serviceTraffic{id: id, labels: labelsOf(id), traffic: maps.Traffic{Flows: 1, Packets: 2, ReplyPackets: 3, Bytes: 4, ReplyBytes: 5}}
	return func(out io.Writer) error { return writeServices(out, []serviceTraffic{service}) }, nil
}

// TestServices: the numbers of services are written beside the registry, in the same text, compressed or not. A scrape that
// fails has none of it.
func TestServices(t *testing.T) {
	ask := func(broken bool, encoding string) (code int, text string) {
		t.Helper()
		m := New("v1", some{broken: broken}, func() State { return State{All: slices.Values([]compile.Service(nil))} })
		request, recorder := httptest.NewRequest("GET", "/metrics", nil), httptest.NewRecorder()
		request.Header.Set("Accept-Encoding", encoding)
		request.Header.Set("Accept", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
		m.Handler().ServeHTTP(recorder, request)
		var body io.Reader = recorder.Body
		if recorder.Header().Get("Content-Encoding") == "gzip" {
			var err error
			if body, err = gzip.NewReader(body); err != nil {
				t.Fatal(err)
			}
		}
		content, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return recorder.Code, string(content)
	}
	const labels = `ip_family="IPv4",namespace="default",port="a\"b",protocol="TCP",scope="",service="web"`
	for _, encoding := range []string{"", "gzip"} {
		code, text := ask(false, encoding)
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(text))
		if err != nil || code != 200 {
			t.Fatalf("%d, encoding %q: %v\n%s", code, encoding, err, text)
		}
		if len(families["weir_service_bytes_total"].GetMetric()) != 2 || families["weir_build_info"] == nil {
			t.Errorf("encoding %q: not all is there:\n%s", encoding, text)
		}
		for line, want := range map[string]int{
			"weir_service_flows_total{": 1, `weir_service_packets_total{direction="request",`: 2, `weir_service_packets_total{direction="reply",`: 3,
			`weir_service_bytes_total{direction="request",`: 4, `weir_service_bytes_total{direction="reply",`: 5,
		} {
			if line := fmt.Sprintf("%s%s} %d\n", line, labels, want); !strings.Contains(text, line) {
				t.Errorf("no line %s in\n%s", line, text)
			}
		}
		if code, text := ask(true, encoding); code != 500 || !strings.Contains(text, "no such map") || strings.Contains(text, "weir_service") {
			t.Errorf("a scrape that fails: %d %s", code, text)
		}
	}
}

// TestScrapeOfManyServices: what a scrape allocates for each Service port is little.
func TestScrapeOfManyServices(t *testing.T) {
	const count = 10000
	services := make([]serviceTraffic, count)
	for i := range services {
		services[i].labels = labelsOf(compile.ID{Namespace: "default", Name: fmt.Sprint("web-", i), Protocol: compile.TCP, Family: compile.IPv4})
	}
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if err := writeServices(io.Discard, services); err != nil {
				b.Fatal(err)
			}
		}
	})
	if each := result.AllocedBytesPerOp() / count; each > 500 {
		t.Errorf("%d bytes for each", each)
	}
}
