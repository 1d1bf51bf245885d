package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/weir-lb/weir/tests/lab"
)

const (
	// serverPort is the API server's.
	serverPort = "6443"
	// adminToken is that of a user who may do everything.
	adminToken = "admin-of-the-lab"
	// serviceCIDRs are where ClusterIPs come from. The API server itself has the first.
	serviceCIDRs = "10.96.0.0/16,fd00:10:96::/112"
	// serverClusterIP is the address of default/kubernetes.
	serverClusterIP = "10.96.0.1"
	// upLimit is how long the control plane may take to be up.
	upLimit = 2 * time.Minute
)

// ControlPlane is etcd, an API server and a controller manager on the lab's client.
type ControlPlane struct {
	Admin kubernetes.Interface

	host    *lab.Host
	dir     string // for files of its own
	bin     string // where the binaries are
	etcd    *process
	server  *process
	manager *process
}

// StartControlPlane starts a control plane. It ends with the lab.
func StartControlPlane(l *lab.Lab, bin string) (*ControlPlane, error) {
	c := &ControlPlane{host: l.Client, dir: filepath.Join(l.Dir, "control-plane"), bin: bin}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	c.etcd = c.process("/usr/bin/etcd", "--data-dir", c.file("etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380")
	c.server = c.process("kube-apiserver", "--etcd-servers", "http://127.0.0.1:2379",
		"--bind-address", "0.0.0.0", "--secure-port", serverPort, "--advertise-address", c.host.IPv4.String(),
		"--tls-cert-file", c.file("server.crt"), "--tls-private-key-file", c.file("server.key"),
		"--token-auth-file", c.file("tokens"), "--authorization-mode", "RBAC", "--allow-privileged",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", c.file("server.key"), "--service-account-signing-key-file", c.file("server.key"),
		"--service-cluster-ip-range", serviceCIDRs, "--disable-admission-plugins", "ServiceAccount",
		// Pods here have no kubelet that would say that they have ended.
		"--shutdown-delay-duration", "0s")
	c.manager = c.process("kube-controller-manager", "--kubeconfig", c.AdminKubeconfig(), "--leader-elect=false",
		"--controllers", "endpointslice-controller,endpointslice-mirroring-controller,endpoints-controller,serviceaccount-controller",
		"--mirroring-max-endpoints-per-subset", "1000")
	if err := c.writeFiles(); err != nil {
		return nil, err
	}
	for _, p := range []*process{c.etcd, c.server, c.manager} {
		if err := p.start(); err != nil {
			return nil, err
		}
	}
	return c, c.WaitUp()
}

func (c *ControlPlane) process(name string, args ...string) *process {
	path := name
	if !filepath.IsAbs(name) {
		path = filepath.Join(c.bin, name)
	}
	return &process{host: c.host, args: append([]string{path}, args...), log: c.file(filepath.Base(name) + ".log")}
}

func (c *ControlPlane) file(name string) string { return filepath.Join(c.dir, name) }

// URL is where the API server is reached.
func (c *ControlPlane) URL() string {
	return "https://" + net.JoinHostPort(c.Address().String(), serverPort)
}

// Address is that of the API server.
func (c *ControlPlane) Address() netip.Addr { return c.host.IPv4 }

func (c *ControlPlane) writeFiles() error {
	tokens := adminToken + ",admin,admin,system:masters\n" + proxyToken + ",system:kube-proxy,kube-proxy\n"
	if err := os.WriteFile(c.file("tokens"), []byte(tokens), 0o600); err != nil {
		return err
	}
	err := writeCertificate(c.file("server.crt"), c.file("server.key"), []string{"localhost", "kubernetes", "kubernetes.default.svc"},
		[]net.IP{c.host.IPv4.AsSlice(), net.ParseIP(serverClusterIP), net.ParseIP("127.0.0.1")})
	if err != nil {
		return err
	}
	if _, err := c.Kubeconfig("admin", adminToken, c.URL()); err != nil {
		return err
	}
	c.Admin, err = c.client()
	return err
}

// Kubeconfig writes the configuration of a client, and returns the file.
func (c *ControlPlane) Kubeconfig(name, token, server string) (string, error) {
	return c.kubeconfig(name, &clientcmdapi.AuthInfo{Token: token}, server)
}

// KubeconfigOfPod writes the configuration of a client whose token is in a file and may be replaced, as a pod has it.
func (c *ControlPlane) KubeconfigOfPod(name, tokenFile string) (string, error) {
	return c.kubeconfig(name, &clientcmdapi.AuthInfo{TokenFile: tokenFile}, c.URL())
}

func (c *ControlPlane) kubeconfig(name string, who *clientcmdapi.AuthInfo, server string) (string, error) {
	config := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"lab": {Server: server, CertificateAuthority: c.CA()}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: who},
		Contexts:       map[string]*clientcmdapi.Context{"lab": {Cluster: "lab", AuthInfo: name}},
		CurrentContext: "lab",
	}
	path := c.file(name + ".kubeconfig")
	return path, clientcmd.WriteToFile(config, path)
}

// client returns an administrator's client whose connections begin in the client's namespace.
func (c *ControlPlane) client() (kubernetes.Interface, error) {
	config := &rest.Config{
		Host: c.URL(), BearerToken: adminToken, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.CA()},
		Dial: func(ctx context.Context, network, address string) (connection net.Conn, err error) {
			err = c.host.Do(func() error {
				// Not DialContext: with a context, connecting may go on in a goroutine that is elsewhere.
				connection, err = net.DialTimeout(network, address, 5*time.Second)
				return err
			})
			return connection, err
		},
	}
	return kubernetes.NewForConfig(config)
}

// AdminKubeconfig is the file of a client that may do everything.
func (c *ControlPlane) AdminKubeconfig() string { return c.file("admin.kubeconfig") }

// CA is the file with the certificate that the API server is known by.
func (c *ControlPlane) CA() string { return c.file("server.crt") }

// Kubectl runs kubectl as the administrator.
func (c *ControlPlane) Kubectl(input string, args ...string) (string, error) {
	return c.host.Run(input, filepath.Join(c.bin, "kubectl"), append([]string{"--kubeconfig", c.AdminKubeconfig()}, args...)...)
}

// WaitUp waits until the API server is ready and has made what every cluster has.
func (c *ControlPlane) WaitUp() error {
	var last error
	for deadline := time.Now().Add(upLimit); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err := errors.Join(c.etcd.running(), c.server.running()); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		last = c.Admin.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		cancel()
		if last == nil {
			return nil
		}
	}
	return fmt.Errorf("the API server is not ready: %w; its log:\n%s", last, c.server.tail())
}

// StopServer ends the API server at once.
func (c *ControlPlane) StopServer() error { return c.server.stop(syscall.SIGKILL) }

// StartServer starts the API server again, and waits until it is ready.
func (c *ControlPlane) StartServer() error {
	if err := c.server.start(); err != nil {
		return err
	}
	if err := c.WaitUp(); err != nil {
		return err
	}
	// It ends when it has lost the server for too long.
	return errors.Join(c.manager.stop(syscall.SIGKILL), c.manager.start())
}

// ForgetHistory has etcd keep nothing but what is now.
func (c *ControlPlane) ForgetHistory() error {
	ask := func(what, request string) (string, error) {
		return c.host.Run("", "curl", "-sS", "--fail", "--max-time", "5", "-d", request, "http://127.0.0.1:2379/v3/kv/"+what)
	}
	answer, err := ask("range", `{"key": "AA=="}`)
	if err != nil {
		return fmt.Errorf("ask etcd what its revision is: %w", err)
	}
	var now struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err := json.Unmarshal([]byte(answer), &now); err != nil {
		return fmt.Errorf("read etcd's revision from %q: %w", answer, err)
	}
	if _, err := ask("compaction", fmt.Sprintf(`{"revision": %q, "physical": true}`, now.Header.Revision)); err != nil {
		return fmt.Errorf("have etcd forget its history: %w", err)
	}
	return nil
}

// Stop ends everything.
func (c *ControlPlane) Stop() error {
	return errors.Join(c.manager.stop(syscall.SIGKILL), c.server.stop(syscall.SIGKILL), c.etcd.stop(syscall.SIGKILL))
}
