package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/tests/lab"
)

// requests is how many requests each frontend gets.
const requests = 60

// target is a frontend and who asks it.
type target struct {
	from     *lab.Host
	what     string
	protocol compile.Protocol
	frontend netip.AddrPort
}

// targets lists every kind of frontend of the manifests, by both families and protocols.
func targets(l *lab.Lab) []target {
	frontends := []struct {
		from       *lab.Host
		what       string
		ipv4, ipv6 string
		tcp, udp   uint16
	}{
		{l.Toolbox, "ClusterIP", "10.96.0.10", "fd00:10:96::10", 80, 9000},
		{l.Client, "NodePort", "192.0.2.1", "2001:db8:1::1", 30080, 30090},
		{l.Client, "LoadBalancer", "203.0.113.20", "2001:db8:3::20", 80, 9000},
		{l.Client, "external IP", "198.18.0.20", "2001:db8:4::20", 80, 9000},
	}
	var all []target
	for _, f := range frontends {
		for _, address := range []string{f.ipv4, f.ipv6} {
			ip := netip.MustParseAddr(address)
			all = append(all,
				target{f.from, f.what, compile.TCP, netip.AddrPortFrom(ip, f.tcp)},
				target{f.from, f.what, compile.UDP, netip.AddrPortFrom(ip, f.udp)})
		}
	}
	return all
}

// tally counts answers by the pod that gave them.
type tally map[string]int

// send sends the requests, each on a connection of its own: by curl where it is TCP.
func (t target) send() (tally, error) {
	if t.protocol == compile.TCP {
		return t.curl()
	}
	counts := tally{}
	for range requests {
		answer, err := t.from.Ask(compile.UDP, netip.AddrPort{}, t.frontend)
		if err != nil {
			return counts, err
		}
		counts[answer.Server]++
	}
	return counts, nil
}

// curl runs curl inside the asking namespace: "[1-60]" makes it send 60 requests.
func (t target) curl() (tally, error) {
	url := fmt.Sprintf("http://%s/[1-%d]", t.frontend, requests)
	output, err := t.from.Run("", "curl", "--silent", "--show-error", "--max-time", "20", "--header", "Connection: close", url)
	counts := tally{}
	for line := range strings.Lines(output) {
		if server, _, ok := strings.Cut(line, " "); ok {
			counts[server]++
		}
	}
	return counts, err
}

// traffic sends requests to every frontend and prints who answered them. It is an error if any request fails, or if a
// pod has nothing to do.
func (s *show) traffic() error {
	pods := make([]string, len(s.Web))
	for i, pod := range s.Web {
		pods[i] = pod.Role
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "  FROM\tTO\tADDRESS\tBY\t%s\n", strings.ToUpper(strings.Join(pods, "\t")))
	for _, target := range targets(s.Lab) {
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		counts, err := target.send()
		printRow(table, target, counts, pods)
		if err == nil {
			err = counts.balanced(pods)
		}
		if err != nil {
			table.Flush()
			return fmt.Errorf("%s %s from %s: %w; the agent's log: %s", target.what, target.frontend, target.from.Role, err, s.agent.LogTail())
		}
	}
	return table.Flush()
}

// printRow prints who answered one target's requests.
func printRow(table io.Writer, t target, counts tally, pods []string) {
	by := "UDP"
	if t.protocol == compile.TCP {
		by = "curl"
	}
	fmt.Fprintf(table, "  %s\t%s\t%s\t%s", t.from.Role, t.what, t.frontend, by)
	for _, pod := range pods {
		fmt.Fprintf(table, "\t%d", counts[pod])
	}
	fmt.Fprintln(table)
}

// balanced is an error unless every request was answered, by all the pods together.
func (c tally) balanced(pods []string) error {
	total := 0
	for server, n := range c {
		if !slices.Contains(pods, server) {
			return fmt.Errorf("%s answered, which is no backend", server)
		}
		total += n
	}
	if total != requests {
		return fmt.Errorf("%d of %d requests were answered", total, requests)
	}
	for _, pod := range pods {
		if c[pod] == 0 {
			return fmt.Errorf("%s answered none of %d requests", pod, requests)
		}
	}
	return nil
}
