package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// readFlags is what every command that looks has in common: where the maps are, and how to show what is there.
type readFlags struct {
	bpffs  string
	output string
}

// flags adds the flags to a command.
func (r *readFlags) flags(c *cobra.Command) {
	bpffsFlag(c, &r.bpffs)
	c.Flags().StringVarP(&r.output, "output", "o", "", "json for the stable, documented form (default: a table)")
	c.PreRunE = func(*cobra.Command, []string) error {
		if r.output != "" && r.output != "json" && r.output != "table" {
			return usagef("output %q is unknown: use json or table", r.output)
		}
		return nil
	}
}

// bpffsFlag adds the flag that tells agents of one host apart.
func bpffsFlag(c *cobra.Command, bpffs *string) {
	c.Flags().StringVar(bpffs, "bpffs", "/sys/fs/bpf", "BPF filesystem in whose directory weir/ everything is pinned")
}

// print shows something as it was asked for.
func (r *readFlags) print(out io.Writer, view any, table func(io.Writer)) error {
	if r.output != "json" {
		table(out)
		return nil
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(view)
}

// table aligns columns.
type table struct{ out *tabwriter.Writer }

// newTable returns a table with a line of titles.
func newTable(out io.Writer, titles ...string) table {
	t := table{out: tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)}
	cells := make([]any, len(titles))
	for i, title := range titles {
		cells[i] = title
	}
	t.row(cells...)
	return t
}

// row adds a line.
func (t table) row(cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(t.out, "\t")
		}
		fmt.Fprint(t.out, cell)
	}
	fmt.Fprintln(t.out)
}

// flush prints what is held back for alignment.
func (t table) flush() { t.out.Flush() }

// quantity shows a number in three or four digits, with a unit of thousands.
func quantity(n float64, unit string) string {
	for _, prefix := range []string{"", "k", "M", "G", "T"} {
		switch {
		case n < 9.995 && n != float64(int(n)):
			return fmt.Sprintf("%.2f%s%s", n, prefix, unit)
		case n < 99.95 && n != float64(int(n)):
			return fmt.Sprintf("%.1f%s%s", n, prefix, unit)
		case n < 999.5:
			return fmt.Sprintf("%.0f%s%s", n, prefix, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.0fP%s", n, unit)
}
