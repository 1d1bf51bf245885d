package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-lb/weir/maps"
)

// flowOptions are the flags of flows.
type flowOptions struct {
	service, client, backend string
	limit                    int
}

// newFlows returns the command that shows connections.
func newFlows() *cobra.Command {
	var (
		from    readFlags
		options flowOptions
	)
	c := &cobra.Command{
		Use:   "flows",
		Short: "Show live flows, those heard last first",
		Long: `Show the flows that the maps hold, whether an agent runs or not: established ones, embryos (which the client has
not confirmed yet), and foreign ones (connections of the node itself that only look like a Service's).

--client and --backend take an address, an address:port or a prefix.`,
		Args: cobra.NoArgs,
		RunE: doing(func(c *cobra.Command, _ []string) error {
			filter, err := options.filter()
			if err != nil {
				return err
			}
			flows, err := readFlows(from.bpffs, filter)
			if err != nil {
				return err
			}
			total := len(flows)
			if options.limit > 0 {
				flows = flows[:min(total, options.limit)]
			}
			return from.print(c.OutOrStdout(), flows, func(out io.Writer) { printFlows(out, flows, total) })
		}),
	}
	from.flags(c)
	c.Flags().StringVar(&options.service, "service", "", "only of this service: a name as weir services takes it")
	c.Flags().StringVar(&options.client, "client", "", "only from this client")
	c.Flags().StringVar(&options.backend, "backend", "", "only to this backend")
	c.Flags().IntVar(&options.limit, "limit", 0, "show that many at most; 0 shows all")
	return c
}

// filter reads the flags.
func (o flowOptions) filter() (flowFilter, error) {
	filter := flowFilter{service: o.service}
	var err error
	if filter.client, err = parseAddressFilter(o.client); err != nil {
		return filter, usagef("--client: %w", err)
	}
	if filter.backend, err = parseAddressFilter(o.backend); err != nil {
		return filter, usagef("--backend: %w", err)
	}
	if o.limit < 0 {
		return filter, usagef("--limit %d is negative", o.limit)
	}
	return filter, nil
}

// readFlows returns the flows that pass a filter.
func readFlows(bpffs string, filter flowFilter) ([]flowView, error) {
	set, err := openPinned(bpffs)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	names, err := readNames(set)
	if err != nil {
		return nil, err
	}
	flows, err := readFlowTable(set.FlowTable())
	if err != nil {
		return nil, err
	}
	embryos, err := readFlowTable(set.EmbryoTable())
	if err != nil {
		return nil, err
	}
	now, err := readClock()
	if err != nil {
		return nil, err
	}
	wanted := make([]flowView, 0)
	for _, table := range []flowTable{{flows: flows}, {flows: embryos, embryo: true}} {
		for _, view := range table.views(names, now) {
			if filter.wants(view) {
				wanted = append(wanted, view)
			}
		}
	}
	sortFlows(wanted)
	return wanted, nil
}

// readFlowTable reads a whole table.
func readFlowTable(table maps.FlowTable) (map[maps.FlowKey]maps.Flow, error) {
	flows := map[maps.FlowKey]maps.Flow{}
	err := table.Each(func(key maps.FlowKey, flow maps.Flow) bool {
		flows[key] = flow
		return true
	})
	return flows, err
}

// readNames returns the names of services by their ids.
func readNames(set *maps.Set) (map[uint32]string, error) {
	names := map[uint32]string{}
	err := each(set.ServiceNames, func(_ uint32, name maps.ServiceName) { names[name.Id] = nameOf(name) })
	return names, err
}

// printFlows prints a line for each flow.
func printFlows(out io.Writer, flows []flowView, total int) {
	t := newTable(out, "PROTOCOL", "EDGE", "CLIENT", "FRONTEND", "BACKEND", "SEEN AS", "SERVICE", "STATE", "IDLE")
	for _, f := range flows {
		backend, seenAs := "-", "-"
		if f.Backend.IsValid() {
			backend = f.Backend.String()
		}
		if f.Source != f.Client {
			seenAs = f.Source.String()
		}
		t.row(f.Protocol, f.Edge, f.Client, f.Frontend, backend, seenAs, orDash(f.Service), f.describeState(),
			f.Idle.Round(10*time.Millisecond))
	}
	t.flush()
	if len(flows) < total {
		fmt.Fprintf(out, "%d of %d\n", len(flows), total)
	}
}

// describeState says in one cell where a flow is in its life.
func (f flowView) describeState() string {
	switch {
	case !f.Whole:
		return f.State + ", half"
	case f.Action == viewAction(maps.FlowTunnel):
		return f.State + ", tunnel"
	default:
		return f.State
	}
}

// orDash shows that there is nothing.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
