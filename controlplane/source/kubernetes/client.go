package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"
	componentconfig "k8s.io/component-base/config/v1alpha1"
)

// Connection is how an API server is reached.
type Connection struct {
	Kubeconfig string // empty: as a pod of the cluster
	UserAgent  string

	// Endpoints are the server's own addresses. They are used whatever address the configuration has, which may be
	// the ClusterIP that the agent itself is to make work. Certificates are checked against the configured one.
	Endpoints []netip.AddrPort

	QPS                float32 // of requests; 0 is the library's standard
	Burst              int
	ContentType        string // empty: protobuf, and JSON where there is none
	AcceptContentTypes string
}

// Configure takes in what a configuration of kube-proxy says of requests.
func (c *Connection) Configure(from componentconfig.ClientConnectionConfiguration) {
	c.QPS, c.Burst = from.QPS, int(from.Burst)
	c.ContentType, c.AcceptContentTypes = from.ContentType, from.AcceptContentTypes
}

// InCluster tells whether the process runs as a pod of a cluster.
func InCluster() bool {
	return os.Getenv("KUBERNETES_SERVICE_HOST") != "" && os.Getenv("KUBERNETES_SERVICE_PORT") != ""
}

// Config reads the configuration of a client.
func (c Connection) Config() (*rest.Config, error) {
	config, err := c.read()
	if err != nil {
		return nil, err
	}
	config.UserAgent = c.UserAgent
	config.QPS, config.Burst = c.QPS, c.Burst
	config.ContentType, config.AcceptContentTypes = c.ContentType, c.AcceptContentTypes
	if c.ContentType == "" {
		config.ContentType = "application/vnd.kubernetes.protobuf"
		config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	}
	rereadToken(config)
	if len(c.Endpoints) > 0 {
		d := &dialer{endpoints: c.Endpoints}
		config.Dial = d.dial
	}
	return config, nil
}

// rereadToken has a token that is refused read from its file again, where it may have been replaced. Else that is done once a
// minute.
func rereadToken(config *rest.Config) {
	if config.BearerTokenFile == "" {
		return
	}
	source := transport.NewCachedFileTokenSource(config.BearerTokenFile)
	config.BearerToken, config.BearerTokenFile = "", ""
	config.Wrap(transport.ResettableTokenSourceWrapTransport(source))
}

func (c Connection) read() (*rest.Config, error) {
	if c.Kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("read the pod's service account: %w", err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", c.Kubeconfig, err)
	}
	return config, nil
}

// Client returns a client, and the address of the server that it is for.
func (c Connection) Client() (client kubernetes.Interface, server string, err error) {
	config, err := c.Config()
	if err != nil {
		return nil, "", err
	}
	client, err = kubernetes.NewForConfig(config)
	if err != nil {
		return nil, "", fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	return client, config.Host, nil
}

// Metadata returns a client for what all kinds of objects have in common.
func (c Connection) Metadata() (metadata.Interface, error) {
	config, err := c.Config()
	if err != nil {
		return nil, err
	}
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	return client, nil
}

// Advice is what to do when the server cannot be reached; empty if there is nothing that can be told.
func (c Connection) Advice() string {
	if c.Kubeconfig != "" || len(c.Endpoints) > 0 {
		return ""
	}
	return "; the address is a ClusterIP, which works only once it is served: name the server's own addresses with --apiserver-endpoints"
}

// dialTimeout is how long one address is tried.
const dialTimeout = 5 * time.Second

// dialer connects to the first endpoint that answers, beginning with the one that did last.
type dialer struct {
	endpoints []netip.AddrPort

	mu   sync.Mutex
	last int // index of the endpoint that answered
}

func (d *dialer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	d.mu.Lock()
	first := d.last
	d.mu.Unlock()
	var failed []error
	for i := range d.endpoints {
		index := (first + i) % len(d.endpoints)
		connection, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext(ctx, "tcp", d.endpoints[index].String())
		if err == nil {
			d.mu.Lock()
			d.last = index
			d.mu.Unlock()
			return connection, nil
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}
