package metrics

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/maps"
)

// Of each Service port there are five numbers, and there may be ten thousand ports: they are written as they are read, and
// not collected first, which would take 50 MiB at each scrape.

// serviceTraffic is what a Service port has had.
type serviceTraffic struct {
	id      compile.ID
	labels  string
	traffic maps.Traffic
}

// serviceMetric is one kind of number. Of those with a direction there are two.
type serviceMetric struct {
	name, help string
	directed   bool
	values     func(maps.Traffic) (request, reply uint64)
}

var serviceMetrics = []serviceMetric{
	{"weir_service_flows_total", "Flows of a Service port.", false, func(t maps.Traffic) (uint64, uint64) { return t.Flows, 0 }},
	{"weir_service_packets_total", "Packets of a Service port, by direction.", true, func(t maps.Traffic) (uint64, uint64) { return t.Packets, t.ReplyPackets }},
	{"weir_service_bytes_total", "Bytes of a Service port, by direction.", true, func(t maps.Traffic) (uint64, uint64) { return t.Bytes, t.ReplyBytes }},
}

// Services returns what writes the numbers of all services, in Prometheus' text format. What cannot be read is an error
// before anything is written.
func (d *Datapath) Services() (write func(io.Writer) error, err error) {
	services, err := d.services()
	if err != nil {
		return nil, err
	}
	return func(out io.Writer) error { return writeServices(out, services) }, nil
}

func writeServices(to io.Writer, services []serviceTraffic) error {
	out := bufio.NewWriter(to)
	for _, metric := range serviceMetrics {
		fmt.Fprintf(out, "# HELP %s %s\n# TYPE %s counter\n", metric.name, metric.help, metric.name)
		for _, s := range services {
			metric.write(out, s)
		}
	}
	return out.Flush() // which says what went wrong before
}

func (m serviceMetric) write(out *bufio.Writer, s serviceTraffic) {
	request, reply := m.values(s.traffic)
	if !m.directed {
		fmt.Fprintf(out, "%s{%s} %d\n", m.name, s.labels, request)
		return
	}
	fmt.Fprintf(out, "%s{direction=\"request\",%s} %d\n", m.name, s.labels, request)
	fmt.Fprintf(out, "%s{direction=\"reply\",%s} %d\n", m.name, s.labels, reply)
}

// labelsOf are those of a service, in the order of their names.
func labelsOf(id compile.ID) string {
	return fmt.Sprintf(`ip_family="%s",namespace="%s",port="%s",protocol="%s",scope="%s",service="%s"`,
		id.Family, escaped(id.Namespace), escaped(id.Port), id.Protocol, escaped(string(id.Scope)), escaped(id.Name))
}

// escaped is a label's value as the text format has it. Names of the API need none of it; what is in a map may.
func escaped(value string) string {
	if !strings.ContainsAny(value, "\\\"\n") {
		return value
	}
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value)
}

// services returns the services that some frontend names, in order.
func (d *Datapath) services() ([]serviceTraffic, error) {
	current := map[uint32]struct{}{}
	err := maps.Each(d.set.Frontends, func(_ maps.FrontendKey, frontend maps.Frontend) bool {
		current[frontend.Index()] = struct{}{}
		return true
	})
	if err != nil {
		return nil, err
	}
	services := make([]serviceTraffic, 0, len(current))
	var failed error
	err = maps.Each(d.set.ServiceNames, func(record uint32, name maps.ServiceName) bool {
		id, err := compile.ParseID(strings.TrimRight(string(name.Name[:]), "\x00"))
		if _, is := current[record]; !is || err != nil { // a name that is just being written is there next time
			return true
		}
		s := serviceTraffic{id: id, labels: labelsOf(id)}
		if s.traffic, failed = maps.ReadTraffic(d.set.ServiceStats, name.Id); failed != nil {
			return false
		}
		services = append(services, s)
		return true
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, fmt.Errorf("read what services have had: %w", err)
	}
	slices.SortFunc(services, func(a, b serviceTraffic) int { return a.id.Compare(b.id) })
	return slices.CompactFunc(services, func(a, b serviceTraffic) bool { return a.id == b.id }), nil
}
