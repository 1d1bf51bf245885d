// Package proxyconfig reads the configuration file that a cluster has for kube-proxy, and says which of its fields
// mean nothing here.
package proxyconfig

import (
	"fmt"
	"os"
	"slices"
	"strings"

	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	apiVersion = "kubeproxy.config.k8s.io/v1alpha1"
	kind       = "KubeProxyConfiguration"
)

// File is what a configuration file says.
type File struct {
	kubeproxy.KubeProxyConfiguration
	Warnings []string // in order of the fields' names: what is asked for and not done
}

// Read reads a file.
func Read(path string) (*File, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	file, err := Parse(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file, nil
}

// Parse reads the content of a file. Fields that kube-proxy does not have either are warnings: it may be a newer one.
func Parse(content []byte) (*File, error) {
	text, err := yaml.YAMLToJSONStrict(content)
	if err != nil {
		return nil, err
	}
	file := &File{}
	unknown, err := kjson.UnmarshalStrict(text, &file.KubeProxyConfiguration)
	if err != nil {
		return nil, err
	}
	if file.APIVersion != apiVersion || file.Kind != kind {
		return nil, fmt.Errorf("it is a %q %q, and should be a %s %s", file.APIVersion, file.Kind, apiVersion, kind)
	}
	var fields map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &fields); err != nil {
		return nil, err
	}
	unknownAs := make([]string, len(unknown))
	for i, warning := range unknown {
		unknownAs[i] = warning.Error()
	}
	file.Warnings = warnings("", fields, func(path string) bool {
		return slices.Contains(unknownAs, fmt.Sprintf("unknown field %q", path))
	})
	slices.Sort(file.Warnings)
	return file, nil
}

// honoured are the fields that mean here what they mean to kube-proxy.
var honoured = []string{
	"apiVersion", "kind", "hostnameOverride", "healthzBindAddress", "metricsBindAddress", "bindAddressHardFail", "enableProfiling",
	"clientConnection", "nodePortAddresses", "detectLocalMode", "detectLocal", "clusterCIDR", "oomScoreAdj", "conntrack", "logging.format", "logging.verbosity", "logging.flushFrequency",
	"iptables.masqueradeAll", "iptables.masqueradeBit", "nftables.masqueradeAll", "nftables.masqueradeBit", "iptables.syncPeriod", "ipvs.syncPeriod", "nftables.syncPeriod",
}

// reasons say why other fields mean nothing, by the beginning of their names. The first that fits counts.
var reasons = []struct{ field, why string }{
	{"mode", "Weir is in the place of every mode"},
	{"iptables.minSyncPeriod", "changes are applied at once"},
	{"ipvs.minSyncPeriod", "changes are applied at once"},
	{"nftables.minSyncPeriod", "changes are applied at once"},
	{"iptables.localhostNodePorts", "whether NodePorts answer on loopback addresses is not chosen here"},
	{"ipvs.scheduler", "how backends are picked is not chosen for the whole node"},
	{"ipvs", "there is no ipvs"},
	{"bindAddress", "both families are served; name addresses with nodePortAddresses"},
	{"configSyncPeriod", "objects are watched, and nothing has to be read again"},
	{"featureGates", "Weir has none of kube-proxy's feature gates"},
	{"logging", "the log is chosen with --log-level and --log-format"},
	{"showHiddenMetricsForVersion", "no metric is hidden"},
	{"portRange", "kube-proxy does not use it either"},
	{"winkernel", "it is for Windows"},
	{"windowsRunAsService", "it is for Windows"},
}

// warnings lists the fields that are set, and mean nothing.
func warnings(prefix string, fields map[string]any, unknown func(path string) bool) []string {
	var list []string
	for name, value := range fields {
		path := prefix + name
		if covers(honoured, path) || unset(path, value) {
			continue
		}
		deeper, isObject := value.(map[string]any)
		if isObject && path != "featureGates" && !unknown(path) {
			list = append(list, warnings(path+".", deeper, unknown)...)
			continue
		}
		list = append(list, fmt.Sprintf("%s is ignored: %s", path, reasonOf(path, unknown(path))))
	}
	return list
}

// covers tells whether one of the fields is, or contains, the one at a path.
func covers(fields []string, path string) bool {
	return slices.ContainsFunc(fields, func(field string) bool {
		return path == field || strings.HasPrefix(path, field+".")
	})
}

// unset tells whether a value is as if it were not there. The address that listens on everything is the standard one.
func unset(path string, value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case string:
		return v == "" || v == "0" || v == "0s" || path == "bindAddress" && (v == "0.0.0.0" || v == "::")
	case bool:
		return !v && path != "iptables.localhostNodePorts"
	case int64:
		return v == 0 && !strings.HasSuffix(path, "masqueradeBit")
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	default:
		return false
	}
}

func reasonOf(path string, unknown bool) string {
	if unknown {
		return "the field is not known"
	}
	for _, r := range reasons {
		if strings.HasPrefix(path, r.field) {
			return r.why
		}
	}
	return "it means nothing here"
}
