package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/weir-lb/weir/maps"
)

// version is set by the linker: -X main.version=...
var version = "unknown"

// newVersion returns the command that says what this is.
func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version, and the layout of the maps that it works with",
		Args:  cobra.NoArgs,
		RunE: doing(func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "weir %s, map layout %d, %s\n", version, maps.LayoutVersion, runtime.Version())
			return err
		}),
	}
}
