package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/weir-lb/weir/tests/lab"
)

//go:embed manifests/*.yaml
var manifests embed.FS

// dumpLines is how much of a map is printed.
const dumpLines = 24

const picture = `    client             node1: runs weir agent                 node2: a router
  192.0.2.10 ───────── 192.0.2.1    198.51.100.1 ───────── 198.51.100.2
                        │     │     │                       │     │
                      web1  web2  toolbox                 web3  web4

  Every one of these is a network namespace of this machine; web1 to web4 are pods with HTTP and UDP
  servers, toolbox is a pod that asks. node1 has netfilter rules as a real node does. No kube-proxy.
`

// show is what the demo prints, in order.
type show struct {
	*lab.Lab
	ctx   context.Context
	agent *lab.Agent
}

// everything shows the lab, the traffic, and what the agent and the maps say of it.
func (s *show) everything() error {
	heading("The lab")
	fmt.Print(picture)
	steps := []struct {
		title string
		show  func() error
	}{
		{"The Services: tests/demo/manifests, ordinary Kubernetes YAML", s.services},
		{"A request: the pod that answered, and the client as it saw it", s.request},
		{fmt.Sprintf("The traffic: %d requests to each frontend, and who answered them", requests), s.traffic},
		{"weir status", func() error { return s.print("status") }},
		{"weir services", func() error { return s.print("services") }},
		{"bpftool map dump pinned .../weir/frontends", s.dump},
	}
	for _, step := range steps {
		heading(step.title)
		if err := step.show(); err != nil {
			return err
		}
	}
	return s.ctx.Err()
}

// heading prints the title of what follows.
func heading(title string) { fmt.Printf("\n== %s\n\n", title) }

// writeManifests copies the sample manifests to where the agent looks.
func writeManifests(agent *lab.Agent) error {
	entries, err := manifests.ReadDir("manifests")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		content, err := manifests.ReadFile("manifests/" + entry.Name())
		if err != nil {
			return err
		}
		if err := agent.Write(strings.TrimSuffix(entry.Name(), ".yaml"), string(content)); err != nil {
			return err
		}
	}
	return nil
}

// services waits until the agent serves the manifests' Services, and says which they are.
func (s *show) services() error {
	begin := time.Now()
	if err := s.agent.WaitHealthy(); err != nil {
		return fmt.Errorf("wait for the agent: %w", err)
	}
	for _, t := range targets(s.Lab) {
		if t.what == "NodePort" {
			continue // a wildcard entry; it comes with the others
		}
		if err := s.agent.WaitFrontend(t.frontend, t.protocol); err != nil {
			return fmt.Errorf("wait for the agent: %w", err)
		}
	}
	fmt.Print("  hello  a ClusterIP, asked by pods\n" +
		"  shop   a LoadBalancer address, external IPs and a NodePort, asked from outside\n" +
		"         both over IPv4 and IPv6, with web1 to web4 behind them\n\n")
	fmt.Printf("  The agent was ready to serve them within %d ms.\n", time.Since(begin).Milliseconds())
	return nil
}

// request shows one curl from a pod and one from outside, as they can be typed.
func (s *show) request() error {
	for _, from := range []struct {
		host *lab.Host
		url  string
	}{{s.Toolbox, "http://10.96.0.10/"}, {s.Client, "http://203.0.113.20/"}} {
		fmt.Printf("  # ip netns exec %s curl -s %s\n", from.host.Name, from.url)
		output, err := from.host.Run("", "curl", "-sS", "--max-time", "5", from.url)
		if err != nil {
			return err
		}
		fmt.Print(indent(output))
	}
	return nil
}

// print prints what a command of the binary says.
func (s *show) print(command string) error {
	output, err := s.agent.CLI(command)
	if err != nil {
		return err
	}
	fmt.Print(indent(output))
	return nil
}

// dump prints the beginning of the frontends map, as bpftool reads it.
func (s *show) dump() error {
	output, err := s.Node1.Run("", "bpftool", "map", "dump", "pinned", filepath.Join(s.agent.BPFFS, "weir", "frontends"))
	if err != nil {
		return err
	}
	lines := strings.SplitAfter(output, "\n")
	if !strings.Contains(output, "service") {
		return errors.New("the frontends map is empty")
	}
	fmt.Print(indent(strings.Join(lines[:min(dumpLines, len(lines))], "")))
	if len(lines) > dumpLines {
		fmt.Printf("  ... and %d lines more\n", len(lines)-dumpLines)
	}
	return nil
}

// indent moves text to the right, but for its empty lines.
func indent(text string) string {
	var out strings.Builder
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		if line != "\n" {
			out.WriteString("  ")
		}
		out.WriteString(line)
	}
	return out.String()
}

// sayHowToLookAround prints what can be done with a lab that stays.
func (s *show) sayHowToLookAround() {
	heading("The lab stays up")
	bpffs := "--bpffs " + s.agent.BPFFS
	fmt.Printf(`  Ask a Service from outside, and from a pod:
      ip netns exec %s curl -s http://203.0.113.20/
      ip netns exec %s curl -s http://10.96.0.10/
  See what Weir does with it:
      %s status %s
      %s services %s
      %s flows %s
  Change a Service; it is live at once:
      $EDITOR %s
  Read the agent's log:
      tail -f %s
  Remove everything:
      make demo-clean
`, s.Client.Name, s.Toolbox.Name, s.agent.Binary, bpffs, s.agent.Binary, bpffs, s.agent.Binary, bpffs,
		filepath.Join(s.agent.Manifests, "shop.yaml"), s.agent.Log)
}
