package main

import (
	"net"
	"net/netip"

	"github.com/spf13/cobra"
)

// The ports of kube-proxy.
const (
	healthzPort = "10256"
	metricsPort = "10249"
)

// healthFlags say where the agent tells how it is.
type healthFlags struct {
	healthz   string
	metrics   string
	hardFail  bool
	profiling bool
}

func (h *healthFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&h.healthz, "healthz-bind-address", "0.0.0.0:"+healthzPort, "where /healthz and /livez are answered; empty: nowhere")
	f.StringVar(&h.metrics, "metrics-bind-address", "127.0.0.1:"+metricsPort, "where /metrics, /proxyMode and /configz are answered; empty: nowhere")
	f.BoolVar(&h.hardFail, "bind-address-hard-fail", false, "end when one of these addresses cannot be listened on, in place of trying again")
	f.BoolVar(&h.profiling, "profiling", false, "answer /debug/pprof/ beside /metrics")
}

// parse checks the flags. The error is a usageError.
func (h healthFlags) parse() (healthFlags, error) {
	var err error
	if h.healthz, err = parseBindAddress("--healthz-bind-address", h.healthz, healthzPort); err != nil {
		return h, err
	}
	h.metrics, err = parseBindAddress("--metrics-bind-address", h.metrics, metricsPort)
	return h, err
}

// parseBindAddress reads an address with a port, or one that gets the standard port.
func parseBindAddress(flag, text, port string) (string, error) {
	if text == "" {
		return "", nil
	}
	if address, err := netip.ParseAddr(text); err == nil {
		return net.JoinHostPort(address.String(), port), nil
	}
	if _, err := netip.ParseAddrPort(text); err != nil {
		return "", usagef("%s %q is not an address like 0.0.0.0:%s or [::]:%s", flag, text, port, port)
	}
	return text, nil
}
