package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/proxyconfig"
)

// lateAfter is how long a change may wait before the node counts as unhealthy: twice kube-proxy's standard syncPeriod.
const lateAfter = time.Minute

// debugVerbosity is from where on kube-proxy's log says what ours says at debug level.
const debugVerbosity = 4

// readConfig reads the file of --config, if there is one, into the flags that were not given.
func (f *agentFlags) readConfig(flags *pflag.FlagSet) error {
	f.proxy = &proxyconfig.File{}
	if f.config == "" {
		return nil
	}
	file, err := proxyconfig.Read(f.config)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	f.proxy = file
	for name, value := range flagsOf(&file.KubeProxyConfiguration) {
		if value == "" || flags.Changed(name) || name == "kubeconfig" && flags.Changed("manifests") {
			continue
		}
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("--config: %w", err)
		}
	}
	return nil
}

// flagsOf returns what a configuration says of the things that there are flags for; nothing is empty.
func flagsOf(c *kubeproxy.KubeProxyConfiguration) map[string]string {
	masqueradeAll, masqueradeBit := masqueradeOf(c)
	flags := map[string]string{
		"masquerade-all":            masqueradeAll,
		"masquerade-bit":            masqueradeBit,
		"node-name":                 c.HostnameOverride,
		"healthz-bind-address":      c.HealthzBindAddress,
		"metrics-bind-address":      c.MetricsBindAddress,
		"kubeconfig":                c.ClientConnection.Kubeconfig,
		"nodeport-addresses":        strings.Join(c.NodePortAddresses, ","),
		"detect-local-mode":         string(c.DetectLocalMode),
		"cluster-cidr":              c.ClusterCIDR,
		"pod-bridge-interface":      c.DetectLocal.BridgeInterface,
		"pod-interface-name-prefix": c.DetectLocal.InterfaceNamePrefix,
		"bind-address-hard-fail":    onlyTrue(c.BindAddressHardFail),
		"profiling":                 onlyTrue(c.EnableProfiling),
	}
	if c.Logging.Verbosity >= debugVerbosity {
		flags["log-level"] = "debug"
	}
	if c.Logging.Format == "json" {
		flags["log-format"] = "json"
	}
	return flags
}

// onlyTrue returns "true", or nothing.
func onlyTrue(value bool) string {
	if value {
		return "true"
	}
	return ""
}

// lateAfterOf returns how long a change may wait: twice the syncPeriod of the mode that the configuration is for.
func lateAfterOf(c *kubeproxy.KubeProxyConfiguration) time.Duration {
	period := c.IPTables.SyncPeriod.Duration
	switch c.Mode {
	case "ipvs":
		period = c.IPVS.SyncPeriod.Duration
	case "nftables":
		period = c.NFTables.SyncPeriod.Duration
	}
	if period <= 0 {
		return lateAfter
	}
	return 2 * period
}

// configProblems lists what the configuration file asks for that is not done.
func (c agentConfig) configProblems() []compile.Problem {
	problems := make([]compile.Problem, len(c.proxy.Warnings))
	for i, warning := range c.proxy.Warnings {
		problems[i] = compile.Problem{Object: "Configuration", Reason: "FieldIgnored", Message: warning}
	}
	return append(problems, c.local.Problems()...)
}

// effective returns the configuration as it is in force, in the words of kube-proxy.
func (c agentConfig) effective() map[string]any {
	config := c.proxy.KubeProxyConfiguration
	config.APIVersion, config.Kind = "kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"
	config.Mode = proxyMode
	config.HostnameOverride = c.nodeName
	config.HealthzBindAddress, config.MetricsBindAddress = c.health.healthz, c.health.metrics
	config.BindAddressHardFail, config.EnableProfiling = c.health.hardFail, c.health.profiling
	config.ClientConnection.Kubeconfig = c.source.connection.Kubeconfig
	config.NodePortAddresses = c.nodePortTexts
	bit := int32(c.masquerade.bit)
	config.IPTables.MasqueradeAll, config.IPTables.MasqueradeBit = c.masquerade.all, &bit
	config.NFTables.MasqueradeAll, config.NFTables.MasqueradeBit = c.masquerade.all, &bit
	config.DetectLocalMode, config.ClusterCIDR = kubeproxy.LocalMode(c.localSettings.Mode), c.localSettings.ClusterCIDR
	config.DetectLocal.BridgeInterface, config.DetectLocal.InterfaceNamePrefix = c.localSettings.BridgeInterface, c.localSettings.NamePrefix
	return map[string]any{"kubeproxy.config.k8s.io": config}
}
