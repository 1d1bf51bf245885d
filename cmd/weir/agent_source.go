package main

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weir-lb/weir/controlplane/source/kubernetes"
)

// sourceFlags say where the agent gets its objects from.
type sourceFlags struct {
	manifests  string
	kubeconfig string
	endpoints  []string
	proxyName  string
}

func (s *sourceFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.manifests, "manifests", "", "directory of Kubernetes YAML to serve (Service, EndpointSlice, Endpoints, Node), watched for changes")
	f.StringVar(&s.kubeconfig, "kubeconfig", "", "API server to follow, and the credentials (default, without --manifests: as a pod of the cluster)")
	f.StringSliceVar(&s.endpoints, "apiserver-endpoints", nil, "the API server's own addresses, like 10.0.0.1:6443, used in place of the configured one: that may be a ClusterIP which the agent is to make work")
	f.StringVar(&s.proxyName, "service-proxy-name", "", "serve the Services with this label service.kubernetes.io/service-proxy-name (default: those without)")
	f.SetNormalizeFunc(kubeProxyNames)
}

// kubeProxyNames lets flags of kube-proxy go by the names that they have there.
func kubeProxyNames(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	if name == "hostname-override" {
		name = "node-name"
	}
	return pflag.NormalizedName(name)
}

// sourceConfig is where the agent gets its objects from: a directory, or an API server.
type sourceConfig struct {
	manifests  string
	connection kubernetes.Connection
	proxyName  string
}

// parse checks the flags. The error is a usageError.
func (s sourceFlags) parse() (sourceConfig, error) {
	config := sourceConfig{manifests: s.manifests, proxyName: s.proxyName}
	config.connection = kubernetes.Connection{Kubeconfig: s.kubeconfig, UserAgent: "weir/" + version}
	if s.manifests != "" && s.kubeconfig != "" {
		return config, usagef("--manifests and --kubeconfig are two sources: name one")
	}
	if s.manifests == "" && s.kubeconfig == "" && !kubernetes.InCluster() {
		return config, usagef("nothing says what to serve: name an API server with --kubeconfig, or a directory of Kubernetes YAML with --manifests")
	}
	for _, text := range s.endpoints {
		endpoint, err := netip.ParseAddrPort(text)
		if err != nil {
			return config, usagef("--apiserver-endpoints: %q is not an address and port like 10.0.0.1:6443 or [2001:db8::1]:6443", text)
		}
		config.connection.Endpoints = append(config.connection.Endpoints, endpoint)
	}
	if s.manifests != "" && len(s.endpoints) > 0 {
		return config, usagef("--apiserver-endpoints is for an API server, not for --manifests")
	}
	return config, nil
}

// String names the source as the status does.
func (s sourceConfig) String() string {
	switch {
	case s.manifests != "":
		return "manifests " + s.manifests
	case s.connection.Kubeconfig != "":
		return "kubeconfig " + s.connection.Kubeconfig
	default:
		return fmt.Sprintf("cluster of the pod (%s)", os.Getenv("KUBERNETES_SERVICE_HOST"))
	}
}
