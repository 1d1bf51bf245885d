package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/weir-lb/weir/bench"
)

// newBench returns the command that has the benchmarks.
func newBench() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newBenchDatapath())
	return c
}

// benchFlags are what weir bench datapath is told.
type benchFlags struct {
	flows    []uint
	rounds   int
	packets  uint32
	cases    string
	baseline string
	output   string
}

// newBenchDatapath returns the command that measures the programs.
func newBenchDatapath() *cobra.Command {
	var flags benchFlags
	c := &cobra.Command{
		Use:   "datapath",
		Short: "Measure what the programs take for a packet, beside the least that any load balancer takes",
		Long: `Measure what the programs take for a packet: of a known flow, of a new one, of none; IPv4 and IPv6, TCP and UDP, XDP
and tc, backends here and elsewhere. Beside them, in the same run, floors: parsing alone, and parsing, one hit in an LRU
hash (a key of 16 bytes for IPv4, 40 for IPv6) and rewriting with both checksums.

The programs run on maps of their own, in a network namespace of their own without a name: nothing that is pinned,
attached or configured on this machine is used or changed, and nothing is left.`,
		Args: cobra.NoArgs,
		RunE: doing(func(c *cobra.Command, _ []string) error { return flags.run(c) }),
	}
	c.Flags().UintSliceVar(&flags.flows, "flows", []uint{1, 65536}, "numbers of known flows; everything is measured with each")
	c.Flags().IntVar(&flags.rounds, "rounds", 15, "rounds; in each, every case takes its turn")
	c.Flags().Uint32Var(&flags.packets, "packets", 50000, "packets of a turn; of new flows, a tenth as many")
	c.Flags().StringVar(&flags.cases, "cases", "", "a regular expression: only cases it matches, as xdp/node/hit/local/IPv4/TCP/65536")
	c.Flags().StringVar(&flags.baseline, "baseline", "", "a file with an earlier run's JSON, to compare with")
	outputFlag(c, &flags.output)
	return c
}

// run measures and prints.
func (f benchFlags) run(c *cobra.Command) error {
	options, err := f.options(c.ErrOrStderr())
	if err != nil {
		return err
	}
	before, err := f.readBaseline()
	if err != nil {
		return err
	}
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	if err := checkKernel(release); err != nil {
		return err
	}
	report, err := bench.Run(c.Context(), options)
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted: nothing is reported, nothing is left")
	case errors.Is(err, bench.ErrNoCase):
		return usagef("no case matches --cases %s: run with --rounds 1 and without it to see them all", f.cases)
	case err != nil:
		return err
	}
	report.Version = version
	return printAs(c.OutOrStdout(), f.output, report, func(out io.Writer) { printBench(out, report, before) })
}

// options are what is measured. Progress goes to the writer.
func (f benchFlags) options(progress io.Writer) (bench.Options, error) {
	options := bench.Options{Rounds: f.rounds, Packets: f.packets, Progress: func(what string) {
		fmt.Fprintf(progress, "measuring %s\n", what)
	}}
	for _, flows := range f.flows {
		options.Flows = append(options.Flows, uint32(min(flows, math.MaxUint32)))
	}
	if f.cases != "" {
		pattern, err := regexp.Compile(f.cases)
		if err != nil {
			return options, usagef("--cases: %w", err)
		}
		options.Match = func(c bench.Case) bool { return pattern.MatchString(c.String()) }
	}
	if err := options.Check(); err != nil {
		return options, usageError{err}
	}
	return options, nil
}

// readBaseline returns the earlier run, or nil where none was named.
func (f benchFlags) readBaseline() (*bench.Report, error) {
	if f.baseline == "" {
		return nil, nil
	}
	report, err := bench.ReadReport(f.baseline)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no file %s: make one with weir bench datapath -o json >%s", f.baseline, f.baseline)
	}
	return report, err
}

// printBench shows a report, beside an earlier one if there is one.
func printBench(out io.Writer, report, before *bench.Report) {
	fmt.Fprintf(out, "%s, Linux %s: %d rounds of %d packets; medians, and the tenths at both ends\n\n",
		report.CPU, report.Kernel, report.Rounds, report.Packets)
	titles := []string{"HOOK", "EDGE", "PACKET", "BACKEND", "FAMILY", "PROTOCOL", "FLOWS", "NS/PACKET", "LOW-HIGH", "FLOOR", "LOW"}
	if before != nil {
		titles = append(titles, "BEFORE", "CHANGE")
	}
	t := newTable(out, titles...)
	for _, result := range report.Results {
		ns := result.Nanoseconds
		cells := []any{
			result.Hook, result.Edge, result.Packet, orDash(result.Backend), result.Family, result.Protocol, result.Flows,
			fmt.Sprintf("%.1f", ns.Median), fmt.Sprintf("%.1f-%.1f", ns.Low, ns.High),
			multiple(result.Floor.Median), multiple(result.Floor.Low),
		}
		if before != nil {
			cells = append(cells, comparison(result, before)...)
		}
		t.row(cells...)
	}
	t.flush()
}

// multiple shows a multiple of the floor; the harness has none.
func multiple(times float64) string {
	if times == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2fx", times)
}

// comparison is what a case took before, and by how much it changed where that is more than noise.
func comparison(now bench.Result, report *bench.Report) []any {
	before, found := report.Find(now.Case)
	if !found {
		return []any{"-", "-"}
	}
	change := "~"
	if now.Nanoseconds.Apart(before.Nanoseconds) {
		change = fmt.Sprintf("%+.0f%%", 100*(now.Nanoseconds.Median/before.Nanoseconds.Median-1))
	}
	return []any{fmt.Sprintf("%.1f", before.Nanoseconds.Median), change}
}
