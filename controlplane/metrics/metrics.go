// Package metrics says in numbers what the programs and the agent do: weir_* are Weir's own, kubeproxy_* are those of
// kube-proxy's that mean the same here, under the names that dashboards already query.
package metrics

import (
	"io"
	"iter"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/store"
)

// families are labelled alike: one writer serves both.
var families = []compile.Family{compile.IPv4, compile.IPv6}

// State is what the agent says of itself when it is asked.
type State struct {
	Synced    bool
	Services  int
	Frontends int
	Problems  []compile.Problem
	Applied   time.Time     // when the maps last held everything; zero: not yet
	Lag       time.Duration // age of the oldest change that they do not hold

	Changes store.Changes // that were taken in
	Waiting store.Changes // of those, the ones that the maps do not hold
	All     iter.Seq[compile.Service]
}

// Metrics are those of one agent.
type Metrics struct {
	registry *prometheus.Registry
	services func() (write func(io.Writer) error, err error)

	healthz, livez *prometheus.CounterVec
	writes         *prometheus.HistogramVec
	failures       prometheus.Counter
	programming    *prometheus.HistogramVec
}

// Maps are what the programs tell; a *Datapath is.
type Maps interface {
	prometheus.Collector
	Services() (write func(io.Writer) error, err error)
}

// New returns the metrics of an agent of that version.
func New(version string, datapath Maps, state func() State) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), services: datapath.Services}
	m.healthz = kubeProxyCounter("proxy_healthz_total", "Cumulative proxy healthz HTTP status", "code")
	m.livez = kubeProxyCounter("proxy_livez_total", "Cumulative proxy livez HTTP status", "code")
	m.writes = kubeProxyHistogram("sync_proxy_rules_duration_seconds", "What a write of the maps took", prometheus.ExponentialBuckets(0.001, 2, 15))
	m.programming = kubeProxyHistogram("network_programming_duration_seconds",
		"From the change of a pod or Service that EndpointSlices follow, to the maps", programmingBuckets())
	m.failures = prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_write_failures_total", Help: "Writes of the maps that failed."})
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weir_build_info", Help: "The version of the agent.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.healthz, m.livez, m.writes, m.programming, m.failures, build,
		datapath, agent{state},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func kubeProxyCounter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kubeproxy", Name: name, Help: help}, labels)
}

func kubeProxyHistogram(name, help string, buckets []float64) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "kubeproxy", Name: name, Help: help, Buckets: buckets}, []string{"ip_family"})
}

// programmingBuckets are those of kube-proxy, in which dashboards count.
func programmingBuckets() []float64 {
	buckets := prometheus.LinearBuckets(0.25, 0.25, 2)
	buckets = append(buckets, prometheus.LinearBuckets(1, 1, 59)...)
	buckets = append(buckets, prometheus.LinearBuckets(60, 5, 12)...)
	return append(buckets, prometheus.LinearBuckets(120, 30, 7)...)
}

// Answered counts an answer of the health server.
func (m *Metrics) Answered(path string, code int) {
	counter := m.livez
	if path == "/healthz" {
		counter = m.healthz
	}
	counter.WithLabelValues(strconv.Itoa(code)).Inc()
}

// Written takes in a write of the maps.
func (m *Metrics) Written(took time.Duration, err error) {
	if err != nil {
		m.failures.Inc()
		return
	}
	for _, family := range families {
		m.writes.WithLabelValues(family.String()).Observe(took.Seconds())
	}
}

// Programmed takes in what a change of endpoints took to reach the maps.
func (m *Metrics) Programmed(family string, took time.Duration) {
	m.programming.WithLabelValues(family).Observe(took.Seconds())
}

// agent collects what the agent says of itself.
type agent struct{ state func() State }

var (
	synced         = describe("synced", "Whether the maps have held all of a complete listing.")
	services       = describe("services", "Service ports that the maps shall hold.")
	frontends      = describe("frontends", "Frontends that the maps shall hold.")
	lag            = describe("lag_seconds", "Age of the oldest change that is not in the maps.")
	problems       = describe("problems", "What objects ask for that is not done, by reason.", "reason")
	lastSync       = kubeProxyDesc("sync_proxy_rules_last_timestamp_seconds", "The last time the maps were written, or found right", "ip_family")
	lastQueued     = kubeProxyDesc("sync_proxy_rules_last_queued_timestamp_seconds", "The arrival of the oldest change that waits, or the last time the maps were written", "ip_family")
	serviceChanges = kubeProxyDesc("sync_proxy_rules_service_changes_total", "Changes of Services")
	sliceChanges   = kubeProxyDesc("sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices")
	serviceWaiting = kubeProxyDesc("sync_proxy_rules_service_changes_pending", "Changes of Services that are not in the maps")
	sliceWaiting   = kubeProxyDesc("sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not in the maps")
	noLocal        = kubeProxyDesc("sync_proxy_rules_no_local_endpoints_total", "Service ports with policy Local and no endpoint on the node", "traffic_policy", "ip_family")
)

func kubeProxyDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kubeproxy_"+name, help, labels, nil)
}

// Describe is part of prometheus.Collector.
func (a agent) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{synced, services, frontends, lag, problems, lastSync, lastQueued, serviceChanges, sliceChanges, serviceWaiting, sliceWaiting, noLocal} {
		out <- desc
	}
}

// Collect is part of prometheus.Collector.
func (a agent) Collect(out chan<- prometheus.Metric) {
	state := a.state()
	isSynced := 0
	if state.Synced {
		isSynced = 1
	}
	out <- gauge(synced, isSynced)
	out <- gauge(services, state.Services)
	out <- gauge(frontends, state.Frontends)
	out <- prometheus.MustNewConstMetric(lag, prometheus.GaugeValue, state.Lag.Seconds())
	byReason := map[string]int{}
	for _, problem := range state.Problems {
		byReason[problem.Reason]++
	}
	for reason, count := range byReason {
		out <- gauge(problems, count, reason)
	}
	out <- counter(serviceChanges, state.Changes.Services)
	out <- counter(sliceChanges, state.Changes.Slices)
	out <- gauge(serviceWaiting, int(state.Waiting.Services))
	out <- gauge(sliceWaiting, int(state.Waiting.Slices))
	collectTimes(out, state)
	collectNoLocal(out, state.All)
}

func collectTimes(out chan<- prometheus.Metric, state State) {
	if state.Applied.IsZero() {
		return
	}
	queued := state.Applied
	if state.Lag > 0 {
		queued = time.Now().Add(-state.Lag)
	}
	for _, family := range families {
		out <- prometheus.MustNewConstMetric(lastSync, prometheus.GaugeValue, seconds(state.Applied), family.String())
		out <- prometheus.MustNewConstMetric(lastQueued, prometheus.GaugeValue, seconds(queued), family.String())
	}
}

// collectNoLocal counts the services that a policy leaves without a backend here, though the cluster has some.
func collectNoLocal(out chan<- prometheus.Metric, all iter.Seq[compile.Service]) {
	type policy struct {
		name   string
		family compile.Family
	}
	counts := map[policy]int{}
	for _, family := range families {
		counts[policy{"internal", family}], counts[policy{"external", family}] = 0, 0
	}
	for service := range all {
		switch {
		case service.NoEndpoints:
		case service.ID.Scope == compile.ScopeExternal && len(service.Outside) == 0:
			counts[policy{"external", service.ID.Family}]++
		case service.ID.Scope == compile.ScopeAll && len(service.Inside) == 0:
			counts[policy{"internal", service.ID.Family}]++
		}
	}
	for p, count := range counts {
		out <- gauge(noLocal, count, p.name, p.family.String())
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }
