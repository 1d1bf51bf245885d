// Package nodecheck looks for what of a node, and not of Weir, keeps Service traffic from getting where it is to go.
package nodecheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/weir-lb/weir/controlplane/compile"
)

// facts are what is looked at.
type facts struct {
	blocked map[compile.Family]bool // forwards nothing of that family
	sockets []socket
}

// Look looks at the node, in the calling thread's network namespace, and lists what is in the way of services.
func Look(services []compile.Service) ([]compile.Problem, error) {
	f := facts{blocked: map[compile.Family]bool{}}
	for family, setting := range forwarding {
		content, err := os.ReadFile(setting.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without that family
		}
		if err != nil {
			return nil, fmt.Errorf("look whether packets are forwarded: %w", err)
		}
		f.blocked[family] = strings.TrimSpace(string(content)) == "0"
	}
	var err error
	if f.sockets, err = listSockets(); err != nil {
		return nil, err
	}
	return f.problems(services), nil
}

// forwarding is what the kernel has to be set to, by family.
var forwarding = map[compile.Family]struct{ path, sysctl string }{
	compile.IPv4: {"/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"},
	compile.IPv6: {"/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"},
}

// problems lists what is in the way of services.
func (f facts) problems(services []compile.Service) []compile.Problem {
	var problems []compile.Problem
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		served := slices.ContainsFunc(services, func(s compile.Service) bool { return s.ID.Family == family })
		if f.blocked[family] && served {
			problems = append(problems, compile.Problem{
				Object: "Node", Reason: "ForwardingOff",
				Message: fmt.Sprintf("the kernel forwards no %s packets, so pods and backends on other nodes are not reached from outside: run: sysctl -w %s=1",
					family, forwarding[family].sysctl),
			})
		}
	}
	for _, service := range services {
		for _, frontend := range service.Frontends {
			if frontend.Kind == compile.NodePort && f.listens(service.ID, frontend) {
				problems = append(problems, problemListening(service.ID, frontend))
			}
		}
	}
	return problems
}
