package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newServices returns the command that shows what is balanced.
func newServices() *cobra.Command {
	var (
		from     readFlags
		interval time.Duration
	)
	c := &cobra.Command{
		Use:   "services [NAME]",
		Short: "Show services: frontends, policies, backends, live rates",
		Long: `Show the services that the maps hold, whether an agent runs or not.

NAME is namespace/name:port/protocol/family, or a leading part of it, with or without the namespace. With a NAME,
the backends are shown one by one.`,
		Args: cobra.MaximumNArgs(1),
		RunE: doing(func(c *cobra.Command, args []string) error {
			if interval < 0 {
				return usagef("--interval %s is negative", interval)
			}
			wanted := func(string) bool { return true }
			if len(args) == 1 {
				wanted = func(name string) bool { return named(name, args[0]) }
			}
			services, err := watchServices(c.Context(), from, wanted, interval)
			if err != nil {
				return err
			}
			if len(args) == 1 && len(services) == 0 {
				return fmt.Errorf("no service in the maps is named %s: see weir services", args[0])
			}
			return from.print(c.OutOrStdout(), services, func(out io.Writer) { printServices(out, services, len(args) == 1) })
		}),
	}
	from.flags(c)
	c.Flags().DurationVar(&interval, "interval", time.Second, "watch counters for that long to show rates; 0 shows none")
	return c
}

// watchServices reads the services twice, an interval apart, or once if that is 0.
func watchServices(ctx context.Context, from readFlags, wanted func(string) bool, interval time.Duration) ([]serviceView, error) {
	set, err := openPinned(from.bpffs)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	before, err := readServices(set, wanted)
	if err != nil || interval == 0 || len(before) == 0 {
		return before, err
	}
	start := time.Now()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(interval):
	}
	after, err := readServices(set, wanted)
	if err != nil {
		return nil, err
	}
	addRates(before, after, time.Since(start).Seconds())
	return after, nil
}

// printServices prints a line for each service, and with details one for each backend.
func printServices(out io.Writer, services []serviceView, details bool) {
	t := newTable(out, "SERVICE", "FRONTENDS", "BACKENDS", "FLOWS", "FLOWS/S", "PACKETS/S", "IN/S", "OUT/S")
	for _, s := range services {
		t.row(s.Name, briefly(s.Frontends), describeBackends(s), s.Traffic.Flows,
			rate(s.Rate, rateView.flows), rate(s.Rate, rateView.packets),
			rate(s.Rate, rateView.in), rate(s.Rate, rateView.out))
	}
	t.flush()
	if !details {
		return
	}
	for _, s := range services {
		printService(out, s)
	}
}

// briefly lists frontends in one cell.
func briefly(frontends []frontendView) string {
	addresses := make([]string, len(frontends))
	for i, f := range frontends {
		addresses[i] = f.Address
	}
	return strings.Join(addresses, " ")
}

// describeBackends counts backends in one cell.
func describeBackends(s serviceView) string {
	local := 0
	for _, b := range s.Backends {
		if b.Local {
			local++
		}
	}
	switch {
	case s.NoEndpoints:
		return "none, rejects"
	case len(s.Backends) == 0:
		return "none here, drops"
	default:
		return fmt.Sprintf("%d, %d local", len(s.Backends), local)
	}
}

// printService prints a service's tables and backends.
func printService(out io.Writer, s serviceView) {
	fmt.Fprintf(out, "\n%s  (id %d)\n  from inside:  %s, %d slots\n  from outside: %s, %d slots\n", s.Name, s.ID,
		s.Inside.Algorithm, s.Inside.Slots, s.Outside.Algorithm, s.Outside.Slots)
	for _, f := range s.Frontends {
		fmt.Fprintf(out, "  %s %s\n", f.Address, f.Kind)
	}
	if s.AffinitySeconds > 0 {
		fmt.Fprintf(out, "  affinity: a client keeps its backend for %s\n", time.Duration(s.AffinitySeconds)*time.Second)
	}
	if s.Restricted {
		fmt.Fprintf(out, "  load balancer addresses are for: %s\n", whoMay(s.SourceRanges))
	}
	t := newTable(out, "  BACKEND", "WHERE", "STATE", "INSIDE", "OUTSIDE", "OPEN", "FLOWS", "FLOWS/S", "PACKETS/S", "IN/S", "OUT/S")
	for _, b := range s.Backends {
		where, state := "elsewhere", "ready"
		switch {
		case b.Local:
			where = "here"
		case b.Tunnel:
			where = "by tunnel"
		}
		if b.Terminating {
			state = "terminating"
		}
		if b.Quarantined {
			state = "quarantined"
		}
		t.row("  "+b.Address, where, state, percent(b.InsideShare), percent(b.OutsideShare), b.Open, b.Traffic.Flows,
			rate(b.Rate, rateView.flows), rate(b.Rate, rateView.packets),
			rate(b.Rate, rateView.in), rate(b.Rate, rateView.out))
	}
	t.flush()
}

// whoMay lists source ranges.
func whoMay(ranges []string) string {
	if len(ranges) == 0 {
		return "nobody"
	}
	return strings.Join(ranges, " ")
}

func (r rateView) flows() string   { return quantity(r.Flows, "") }
func (r rateView) packets() string { return quantity(r.Packets+r.ReplyPackets, "") }
func (r rateView) in() string      { return quantity(r.Bytes, "B") }
func (r rateView) out() string     { return quantity(r.ReplyBytes, "B") }

// rate shows part of a rate, or that it is not known.
func rate(of *rateView, part func(rateView) string) string {
	if of == nil {
		return "-"
	}
	return part(*of)
}

// percent shows a share.
func percent(share float64) string { return fmt.Sprintf("%.0f%%", 100*share) }
