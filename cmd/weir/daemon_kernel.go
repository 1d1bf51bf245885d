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
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/weir-lb/weir/controlplane/compile"
)

// What kube-proxy takes for the size of the connection tracking table where its configuration does not say.
const (
	conntrackPerCore = 32768
	conntrackMin     = 131072
)

// Where the kernel says how many connections it tracks at most, and in how many buckets it keeps them. The latter is of
// the machine, and no sysctl of a network namespace.
const (
	conntrackMax     = "/proc/sys/net/netfilter/nf_conntrack_max"
	conntrackBuckets = "/sys/module/nf_conntrack/parameters/hashsize"
)

// connectionsPerBucket is how many connections kube-proxy lets there be in a bucket, on the average.
const connectionsPerBucket = 4

// setting is a value of the kernel's that the configuration file asks for.
type setting struct {
	path, value string
	raise       bool // it is a number that is only ever raised
}

// configureKernel does what a file of --config asks for of the kernel: nobody else would, where kube-proxy has gone.
func (d *daemon) configureKernel() {
	if d.config.configFile == "" {
		return
	}
	d.kernelProblems = applyAll(settingsOf(&d.config.proxy.KubeProxyConfiguration, runtime.NumCPU()), d.log)
}

// applyAll writes settings, and tells which cannot be.
func applyAll(settings []setting, log *zap.Logger) []compile.Problem {
	var problems []compile.Problem
	for _, s := range settings {
		err := s.apply()
		if err == nil || s.needsNothing(err) {
			continue
		}
		log.Warn("set what --config asks for", zap.String("path", s.path), zap.String("value", s.value), zap.Error(err))
		problems = append(problems, compile.Problem{
			Object: "Configuration", Reason: "SettingRefused",
			Message: fmt.Sprintf("%s cannot be set to %s (%v): %s", s.path, s.value, err, s.advice(err)),
		})
	}
	return problems
}

// needsNothing tells whether it is no harm that a setting is not there: the node tracks no connections. Where it does, its
// table has buckets, and they are missing because no sysfs is mounted here.
func (s setting) needsNothing(err error) bool {
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if s.path != conntrackBuckets {
		return true
	}
	_, err = os.Stat(conntrackMax)
	return err != nil
}

// advice says what to do about an error.
func (s setting) advice(err error) string {
	do := fmt.Sprintf("on the node run: echo %s > %s", s.value, s.path)
	if s.path != conntrackBuckets {
		return do
	}
	switch {
	case errors.Is(err, unix.EROFS):
		return "sysfs is mounted read-only here: mount it writable, or " + do
	case errors.Is(err, fs.ErrNotExist):
		return "sysfs is not mounted here: mount it, or " + do
	default:
		return do
	}
}

// settingsOf lists what a configuration asks for on a machine with so many CPUs.
func settingsOf(c *kubeproxy.KubeProxyConfiguration, cpus int) []setting {
	var settings []setting
	add := func(path, value string) { settings = append(settings, setting{path: path, value: value}) }
	raise := func(path string, value int) {
		settings = append(settings, setting{path: path, value: strconv.Itoa(value), raise: true})
	}
	if c.OOMScoreAdj != nil {
		add("/proc/self/oom_score_adj", strconv.Itoa(int(*c.OOMScoreAdj)))
	}
	if size := conntrackSize(c.Conntrack, cpus); size > 0 {
		raise(conntrackMax, size)
		raise(conntrackBuckets, size/connectionsPerBucket)
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

// apply writes the value where it is not so already.
func (s setting) apply() error {
	content, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	current := strings.TrimSpace(string(content))
	if current == s.value || s.raise && !less(current, s.value) {
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
