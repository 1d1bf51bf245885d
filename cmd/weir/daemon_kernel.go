package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/weir-lb/weir/controlplane/compile"
)

// What kube-proxy takes for the size of the connection tracking table where its configuration does not say.
const (
	conntrackPerCore = 32768
	conntrackMin     = 131072
)

// conntrackMax is the sysctl that is only ever raised.
const conntrackMax = "net/netfilter/nf_conntrack_max"

// setting is a value of the kernel's that the configuration file asks for.
type setting struct{ path, value string }

// configureKernel does what a file of --config asks for of the kernel: nobody else would, where kube-proxy has gone.
func (d *daemon) configureKernel() {
	if d.config.configFile == "" {
		return
	}
	for _, s := range settingsOf(&d.config.proxy.KubeProxyConfiguration, runtime.NumCPU()) {
		err := s.apply()
		if errors.Is(err, fs.ErrNotExist) {
			continue // the node tracks no connections
		}
		if err != nil {
			d.log.Warn("set what --config asks for", zap.String("path", s.path), zap.String("value", s.value), zap.Error(err))
			d.kernelProblems = append(d.kernelProblems, compile.Problem{
				Object: "Configuration", Reason: "SettingRefused",
				Message: fmt.Sprintf("%s cannot be set to %s (%v): set it on the node", s.path, s.value, err),
			})
		}
	}
}

// settingsOf lists what a configuration asks for on a machine with so many CPUs.
func settingsOf(c *kubeproxy.KubeProxyConfiguration, cpus int) []setting {
	var settings []setting
	add := func(path, value string) { settings = append(settings, setting{path, value}) }
	if c.OOMScoreAdj != nil {
		add("/proc/self/oom_score_adj", strconv.Itoa(int(*c.OOMScoreAdj)))
	}
	if size := conntrackSize(c.Conntrack, cpus); size > 0 {
		add("/proc/sys/"+conntrackMax, strconv.Itoa(size))
	}
	for _, timeout := range []struct {
		name  string
		value *metav1.Duration
	}{
		{"tcp_timeout_established", c.Conntrack.TCPEstablishedTimeout},
		{"tcp_timeout_close_wait", c.Conntrack.TCPCloseWaitTimeout},
		{"udp_timeout", &c.Conntrack.UDPTimeout},
		{"udp_timeout_stream", &c.Conntrack.UDPStreamTimeout},
	} {
		if timeout.value != nil && timeout.value.Duration > 0 {
			add("/proc/sys/net/netfilter/nf_conntrack_"+timeout.name, strconv.Itoa(int(timeout.value.Duration/time.Second)))
		}
	}
	if c.Conntrack.TCPBeLiberal {
		add("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "1")
	}
	return settings
}

// conntrackSize returns how many connections there shall be room for; 0: as many as there is.
func conntrackSize(c kubeproxy.KubeProxyConntrackConfiguration, cpus int) int {
	perCore, least := int32(conntrackPerCore), int32(conntrackMin)
	if c.MaxPerCore != nil {
		perCore = *c.MaxPerCore
	}
	if c.Min != nil {
		least = *c.Min
	}
	if perCore <= 0 {
		return 0
	}
	return max(int(perCore)*cpus, int(least))
}

// apply writes the value where it is not so already. The size of the table is not lowered.
func (s setting) apply() error {
	content, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	current := strings.TrimSpace(string(content))
	if current == s.value || strings.HasSuffix(s.path, conntrackMax) && !less(current, s.value) {
		return nil
	}
	return os.WriteFile(s.path, []byte(s.value), 0)
}

// less compares numbers.
func less(a, b string) bool {
	x, errX := strconv.Atoi(a)
	y, errY := strconv.Atoi(b)
	return errX == nil && errY == nil && x < y
}
