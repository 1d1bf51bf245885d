package surroundings

import (
	"fmt"
	"os"
	"strings"

	"github.com/weir-lb/weir/controlplane/compile"
)

// switches are what lets a node forward, by family.
var switches = map[compile.Family]string{
	compile.IPv4: "net/ipv4/ip_forward",
	compile.IPv6: "net/ipv6/conf/all/forwarding",
}

// forwarding tells where the node forwards nothing, of the families that are served.
func forwarding(families map[compile.Family]bool) ([]compile.Problem, error) {
	var problems []compile.Problem
	for _, family := range []compile.Family{compile.IPv4, compile.IPv6} {
		if !families[family] {
			continue
		}
		content, err := os.ReadFile("/proc/sys/" + switches[family])
		if err != nil {
			return problems, fmt.Errorf("read whether the node forwards: %w", err)
		}
		if strings.TrimSpace(string(content)) != "0" {
			continue
		}
		name := strings.ReplaceAll(switches[family], "/", ".")
		problems = append(problems, compile.Problem{
			Object: "Node", Reason: "ForwardingOff",
			Message: fmt.Sprintf("%s is 0: nothing from outside reaches pods over %s; run: sysctl -w %s=1", name, family, name),
		})
	}
	return problems, nil
}
