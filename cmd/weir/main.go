// Command weir is a Service load balancer for Kubernetes and plain Linux hosts: the agent that fills the BPF maps,
// and the commands that look at them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// What weir exits with.
const (
	exitFine   = 0
	exitFailed = 1 // one line on standard error says why and what to do
	exitUsage  = 2 // the command line makes no sense
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run runs a command line and returns what to exit with. An interrupt ends the command's context.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitFine
	}
	var failed failure
	if errors.As(err, &failed) {
		fmt.Fprintf(stderr, "weir: %v\n", failed.error)
		return exitFailed
	}
	fmt.Fprintf(stderr, "weir: %v; see weir --help\n", err)
	return exitUsage
}

// failure is an error of what a command does, not of how it was called.
type failure struct{ error }

// newRoot returns the command that has all others.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "weir",
		Short:         "Service load balancing in eBPF, beside any CNI",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newAgent(), newStatus(), newCoverage(), newServices(), newFlows(), newBench(), newCleanup(), newVersion())
	return root
}

// doing makes what a command does into its RunE: its errors are failures, named after the command.
func doing(do func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		err := do(c, args)
		var usage usageError
		if err == nil || errors.As(err, &usage) {
			return err
		}
		return failure{fmt.Errorf("%s: %w", c.Name(), err)}
	}
}

// usageError is a flag or argument that makes no sense.
type usageError struct{ error }

// usagef returns a usageError.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }
