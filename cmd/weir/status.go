package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-lb/weir/controlplane/status"
)

// newStatus returns the command that tells how things are.
func newStatus() *cobra.Command {
	var from readFlags
	c := &cobra.Command{
		Use:   "status",
		Short: "Show whether all is well: agent, attachments, map fill, sync lag, problems, counters",
		Args:  cobra.NoArgs,
		RunE: doing(func(c *cobra.Command, _ []string) error {
			view, err := readStatus(from.bpffs)
			if err != nil {
				return err
			}
			return from.print(c.OutOrStdout(), view, func(out io.Writer) { printStatus(out, view, time.Now()) })
		}),
	}
	from.flags(c)
	return c
}

// printStatus prints the status for people.
func printStatus(out io.Writer, view statusView, now time.Time) {
	if view.Healthy {
		fmt.Fprintln(out, "Healthy")
	} else {
		fmt.Fprintln(out, "Not healthy")
	}
	for _, reason := range view.Reasons {
		fmt.Fprintf(out, "  %s\n", reason)
	}
	printAgent(out, view.Agent, view.SocketCoverage, now)
	printKubeProxy(out, view.KubeProxy)
	printMaps(out, view)
	printQuarantined(out, view.Quarantined)
	printCounters(out, view.Counters)
	printProblems(out, view.Agent, now)
}

// printAgent prints what the agent says of itself.
func printAgent(out io.Writer, agent agentView, coverage *coverageView, now time.Time) {
	if agent.Snapshot == nil {
		fmt.Fprintln(out, "\nAgent: none has said anything of itself")
		return
	}
	if agent.Running {
		fmt.Fprintf(out, "\nAgent: running, pid %d, up %s\n", agent.PID, since(now, agent.Started))
	} else {
		fmt.Fprintf(out, "\nAgent: not running; the last one was heard %s ago\n", since(now, agent.Written))
	}
	fmt.Fprintf(out, "  version %s, node %s, kernel %s, %s\n", agent.Version, agent.Node, agent.Kernel, agent.Source)
	fmt.Fprintf(out, "  %d services with %d frontends\n", agent.Sync.Services, agent.Sync.Frontends)
	if !agent.Sync.Last.IsZero() {
		fmt.Fprintf(out, "  last change in the maps %s ago, %s after it arrived\n",
			since(now, agent.Sync.Last), agent.Sync.Latency.Round(10*time.Microsecond))
	}
	fmt.Fprintf(out, "  socket edge: %s\n", describeSockets(agent.Sockets, coverage))
	fmt.Fprintf(out, "  connections that others translate: %s\n", describeForeign(agent.Foreign))
	fmt.Fprintf(out, "  backends on other nodes: %s\n", describeForwarding(agent.Forwarding))
	if len(agent.Attachments) == 0 {
		return
	}
	fmt.Fprintln(out)
	t := newTable(out, "DEVICE", "EDGE", "ATTACHED", "BESIDE", "WHY NOT OTHERWISE")
	for _, a := range agent.Attachments {
		t.row(a.Device, a.Edge, list(a.Hooks), list(a.Foreign), list(a.Reasons))
	}
	t.flush()
}

// printKubeProxy prints what there is of kube-proxy.
func printKubeProxy(out io.Writer, view *kubeProxyView) {
	if view == nil {
		return
	}
	fmt.Fprintln(out)
	if view.Any() {
		fmt.Fprintf(out, "kube-proxy: its rules are still there (%s); new connections do not meet them, weir cleanup --kube-proxy removes them\n", view.Rules)
	}
	if view.Kept {
		fmt.Fprintf(out, "kube-proxy: table inet weir-keep is there for %d connections that it has translated, and goes when they have ended\n", view.Count)
	}
}

// describeSockets says in one line what the socket edge serves, and whether it was found to.
func describeSockets(s status.Sockets, coverage *coverageView) string {
	if s.Whose == "off" || s.Whose == "" {
		return "off"
	}
	if s.Cgroup == "" {
		return "serves nobody: " + strings.Join(s.Reasons, "; ")
	}
	serves := "processes below " + s.Cgroup
	if s.Whose == "host" {
		serves += " in the node's network namespace"
	}
	switch {
	case coverage == nil:
	case coverage.Proven:
		serves += ", proven by a connect from another cgroup"
	default:
		serves += ", not proven: " + coverage.Reason
	}
	return strings.Join(append([]string{serves}, s.Reasons...), "; ")
}

// describeForwarding says in one line how packets come to backends on other nodes.
func describeForwarding(f status.Forwarding) string {
	switch {
	case f.Mode != forwardDSR:
		return "SNAT"
	case !f.Sends:
		return "SNAT, until other nodes know where tunnels of this one come from (--forward dsr)"
	default:
		return fmt.Sprintf("in tunnels to %d nodes that take part in DSR, SNAT to others", f.Nodes)
	}
}

// describeForeign says in a few words what was there before.
func describeForeign(f *status.Foreign) string {
	switch {
	case f == nil:
		return "not looked for yet; what is of no flow passes"
	case f.Connections == 0:
		return "none at the start"
	default:
		return fmt.Sprintf("%d at the start, which pass untouched until they end", f.Connections)
	}
}

// list shows words in one cell.
func list(words []string) string { return orDash(strings.Join(words, ", ")) }

// printMaps prints how full the maps are.
func printMaps(out io.Writer, view statusView) {
	fmt.Fprintln(out)
	t := newTable(out, "MAP", "USED", "OF", "FILL")
	for _, m := range view.Maps {
		t.row(m.Name, m.Used, m.Capacity, percent(float64(m.Used)/float64(m.Capacity)))
	}
	t.flush()
	if view.SNAT == nil {
		return
	}
	fmt.Fprintf(out, "\nForwarded flows to one backend at once: %d over IPv4 (%d addresses), %d over IPv6 (%d); ports %s\n",
		view.SNAT.Flows["IPv4"], view.SNAT.Addresses["IPv4"], view.SNAT.Flows["IPv6"], view.SNAT.Addresses["IPv6"], view.SNAT.Ports)
}

// printQuarantined prints which backends get no new flows.
func printQuarantined(out io.Writer, quarantined []quarantineView) {
	if len(quarantined) == 0 {
		return
	}
	fmt.Fprintln(out)
	t := newTable(out, "SILENT BACKEND", "NO NEW FLOWS FOR")
	for _, q := range quarantined {
		t.row(q.Backend, q.Left)
	}
	t.flush()
}

// printCounters prints the counters that have counted.
func printCounters(out io.Writer, counters map[string]uint64) {
	fmt.Fprintln(out)
	t := newTable(out, "COUNTER", "PACKETS")
	for _, name := range slices.Sorted(maps.Keys(counters)) {
		if counters[name] > 0 {
			t.row(name, counters[name])
		}
	}
	t.flush()
}

// printProblems prints what is refused, and what went wrong.
func printProblems(out io.Writer, agent agentView, now time.Time) {
	if agent.Snapshot == nil {
		return
	}
	if len(agent.Problems) > 0 {
		fmt.Fprintln(out, "\nProblems")
	}
	for _, p := range agent.Problems {
		fmt.Fprintf(out, "  %s: %s: %s\n", p.Object, p.Reason, p.Message)
	}
	if len(agent.Errors) > 0 {
		fmt.Fprintln(out, "\nLast errors")
	}
	for _, e := range agent.Errors {
		fmt.Fprintf(out, "  %s ago: %s\n", since(now, e.Time), e.Message)
	}
}

// since shows how long ago something was.
func since(now, then time.Time) time.Duration {
	ago := now.Sub(then)
	if ago > time.Minute {
		return ago.Round(time.Second)
	}
	return ago.Round(time.Millisecond)
}
