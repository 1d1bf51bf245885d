package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-lb/weir/maps"
)

// Fill is how full a map is.
type Fill struct {
	Map            string
	Used, Capacity int
}

// Datapath collects what the maps tell: it reads them when it is asked, and holds nothing.
type Datapath struct {
	set  *maps.Set
	fill func() ([]Fill, error)
}

// NewDatapath returns a collector over maps. Fill reads how full they are.
func NewDatapath(set *maps.Set, fill func() ([]Fill, error)) *Datapath {
	return &Datapath{set: set, fill: fill}
}

// describe returns the description of a metric of ours.
func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("weir_"+name, help, labels, nil)
}

// packets are the metrics of the programs' counters, by the beginning of the counters' names. The first that fits
// has the counter.
var packets = []struct {
	prefix string
	desc   *prometheus.Desc
}{
	{"drop_", describe("drops_total", "Packets dropped, by reason.", "reason")},
	{"refuse_", describe("refusals_total", "Calls of connect, send and bind refused at the socket edge, by reason.", "reason")},
	{"reject_", describe("rejects_total", "Packets rejected with an answer, by its kind.", "kind")},
	{"icmp_", describe("icmp_total", "ICMP errors owed for packets that are forwarded, by kind.", "kind")},
	{"pass_", describe("passed_total", "Packets left alone, by reason.", "reason")},
	{"flow_", describe("flow_events_total", "Flows that were begun, established, or taken note of.", "event")},
	{"", describe("events_total", "Everything else that the programs count.", "event")},
}

var (
	mapEntries  = describe("map_entries", "Entries of a map that are in use.", "map")
	quarantined = describe("backends_quarantined", "Backends that clients have found silent, and that get no new flows.")
	mapCapacity = describe("map_capacity", "Entries that a map has room for.", "map")
)

// Describe is part of prometheus.Collector.
func (d *Datapath) Describe(out chan<- *prometheus.Desc) {
	for _, p := range packets {
		out <- p.desc
	}
	for _, desc := range []*prometheus.Desc{quarantined, mapEntries, mapCapacity} {
		out <- desc
	}
}

// Collect is part of prometheus.Collector. What cannot be read fails the scrape.
func (d *Datapath) Collect(out chan<- prometheus.Metric) {
	if err := d.collectCounters(out); err != nil {
		out <- prometheus.NewInvalidMetric(packets[0].desc, err)
	}
	if err := d.collectFill(out); err != nil {
		out <- prometheus.NewInvalidMetric(mapEntries, err)
	}
	if err := d.collectHealth(out); err != nil {
		out <- prometheus.NewInvalidMetric(quarantined, err)
	}
}

func counter(desc *prometheus.Desc, value uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
}

func gauge(desc *prometheus.Desc, value int, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
}

func (d *Datapath) collectCounters(out chan<- prometheus.Metric) error {
	counters, err := d.set.ReadCounters()
	if err != nil {
		return err
	}
	for name, count := range counters {
		for _, p := range packets {
			if rest, fits := strings.CutPrefix(name, p.prefix); fits {
				out <- counter(p.desc, count, rest)
				break
			}
		}
	}
	return nil
}

func (d *Datapath) collectFill(out chan<- prometheus.Metric) error {
	fills, err := d.fill()
	for _, f := range fills {
		out <- gauge(mapEntries, f.Used, f.Map)
		out <- gauge(mapCapacity, f.Capacity, f.Map)
	}
	return err
}

func (d *Datapath) collectHealth(out chan<- prometheus.Metric) error {
	found, err := d.set.Quarantined()
	if err != nil {
		return err
	}
	out <- gauge(quarantined, len(found))
	return nil
}
