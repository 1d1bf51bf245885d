package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/tests/lab"
)

// Container runs the container of a DaemonSet's pod as a kubelet and its runtime do: by an OCI runtime, from the files of
// the image, with the capabilities, mounts, arguments and ServiceAccount that the manifest says, and no others.
type Container struct {
	id      string
	host    *lab.Host
	bundle  string
	process *process
}

// ContainerOptions are what a node has for its pods.
type ContainerOptions struct {
	Pod       corev1.PodSpec // of one container
	Image     *Image
	Without   []corev1.Capability // left out of the manifest's
	HostPaths map[string]string   // what of the lab stands for a path of the node
	Config    map[string]string   // the ConfigMap's
	Token     string              // the ServiceAccount's
	Server    string              // address of the API server
	CA        string              // file with its certificate
	Env       map[string]string   // of the manifest's fields: "spec.nodeName"
}

// Directories that a kubelet makes for a pod.
const (
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	caFile     = "ca.crt"
)

// NewContainer prepares a container on a host. dir is for its bundle.
func NewContainer(host *lab.Host, dir string, options ContainerOptions) (*Container, error) {
	c := &Container{id: filepath.Base(dir), host: host, bundle: dir}
	spec, err := c.spec(options)
	if err != nil {
		return nil, err
	}
	content, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return nil, err
	}
	c.process = &process{
		host: host, log: filepath.Join(dir, "log"),
		args: c.runc("run", "--bundle", dir, c.id),
	}
	return c, os.WriteFile(filepath.Join(dir, "config.json"), content, 0o644)
}

// Start starts the container.
func (c *Container) Start() error { return c.process.start() }

// Stop ends it as a kubelet does.
func (c *Container) Stop() error {
	kill := c.runc("kill", c.id, "TERM")
	if _, err := c.host.Run("", kill[0], kill[1:]...); err != nil {
		return err
	}
	return c.process.stop(syscall.Signal(0))
}

// Exec runs a command in it, as `kubectl exec` does.
func (c *Container) Exec(args ...string) (string, error) {
	command := append(c.runc("exec", c.id), args...)
	return c.host.Run("", command[0], command[1:]...)
}

// runc returns a command of the runtime, whose state is in the bundle.
func (c *Container) runc(args ...string) []string {
	return append([]string{"runc", "--root", filepath.Join(c.bundle, "state")}, args...)
}

// Sees tells whether something is mounted at a path in the container.
func (c *Container) Sees(path string) (bool, error) {
	state := c.runc("state", c.id)
	output, err := c.host.Run("", state[0], state[1:]...)
	if err != nil {
		return false, err
	}
	var container struct{ PID int }
	if err := json.Unmarshal([]byte(output), &container); err != nil {
		return false, err
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", container.PID))
	return strings.Contains(string(mounts), " "+path+" "), err
}

// Running is an error unless it runs.
func (c *Container) Running() error { return c.process.running() }

// Log returns the last lines that it has printed.
func (c *Container) Log() string { return c.process.tail() }

// object is a part of an OCI runtime's config.json.
type object = map[string]any

// spec returns the config.json (the OCI's runtime-spec, config.md).
func (c *Container) spec(options ContainerOptions) (object, error) {
	container := options.Pod.Containers[0]
	mounts, err := c.mounts(options)
	if err != nil {
		return nil, err
	}
	capabilities := capabilitiesOf(container.SecurityContext, options.Without)
	// With hostNetwork the network namespace is the node's: the one that the runtime is started in.
	namespaces := []object{{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}}
	if !options.Pod.HostPID {
		namespaces = append(namespaces, object{"type": "pid"})
	}
	return object{
		"ociVersion": "1.0.2",
		"root":       object{"path": options.Image.Root, "readonly": *container.SecurityContext.ReadOnlyRootFilesystem},
		"process": object{
			"user": object{"uid": 0, "gid": 0},
			"cwd":  "/",
			"args": append([]string{"/weir"}, expanded(container, options)...),
			"env":  environment(container, options),
			"capabilities": object{
				"bounding": capabilities, "effective": capabilities, "permitted": capabilities,
			},
		},
		"mounts": mounts,
		"linux": object{
			"namespaces":    namespaces,
			"maskedPaths":   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}, nil
}

// numbers are those of the capabilities that a manifest may have.
var numbers = map[corev1.Capability]uintptr{
	"BPF": unix.CAP_BPF, "PERFMON": unix.CAP_PERFMON, "NET_ADMIN": unix.CAP_NET_ADMIN, "SYS_ADMIN": unix.CAP_SYS_ADMIN,
	"SYS_RESOURCE": unix.CAP_SYS_RESOURCE,
}

// capabilitiesOf returns the capabilities of a manifest, by the kernel's names, but for those that this machine has not got
// itself.
func capabilitiesOf(security *corev1.SecurityContext, without []corev1.Capability) []string {
	var names []string
	for _, capability := range security.Capabilities.Add {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, numbers[capability], 0, 0, 0)
		if has == 1 && err == nil && !slices.Contains(without, capability) {
			names = append(names, "CAP_"+string(capability))
		}
	}
	return names
}

// environment returns the container's variables.
func environment(container corev1.Container, options ContainerOptions) []string {
	list := []string{"KUBERNETES_SERVICE_HOST=" + options.Server, "KUBERNETES_SERVICE_PORT=" + serverPort}
	for _, variable := range container.Env {
		list = append(list, variable.Name+"="+options.Env[variable.ValueFrom.FieldRef.FieldPath])
	}
	return list
}

// expanded returns the arguments with the variables of the container in them.
func expanded(container corev1.Container, options ContainerOptions) []string {
	args := slices.Clone(container.Args)
	for i := range args {
		for _, variable := range container.Env {
			args[i] = strings.ReplaceAll(args[i], "$("+variable.Name+")", options.Env[variable.ValueFrom.FieldRef.FieldPath])
		}
	}
	return args
}

// mounts returns what is mounted: what every container has, its volumes, and its ServiceAccount.
func (c *Container) mounts(options ContainerOptions) ([]object, error) {
	mounts := []object{
		{"destination": "/proc", "type": "proc", "source": "proc", "options": []string{"nosuid", "noexec", "nodev"}},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=65536k"}},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"nosuid", "noexec", "nodev", "ro"}},
	}
	for _, mount := range options.Pod.Containers[0].VolumeMounts {
		source, err := c.volume(mount.Name, options)
		if err != nil {
			return nil, err
		}
		mode := []string{"rbind", "rprivate", "rw"}
		if mount.ReadOnly {
			mode[2] = "ro"
		}
		if mount.MountPropagation != nil && *mount.MountPropagation == corev1.MountPropagationHostToContainer {
			mode[1] = "rslave"
		}
		mounts = append(mounts, bind(mount.MountPath, source, mode...))
	}
	account, err := c.files("account", map[string]string{"token": options.Token, "namespace": "kube-system"})
	if err != nil {
		return nil, err
	}
	certificate, err := os.ReadFile(options.CA)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(account, caFile), certificate, 0o644); err != nil {
		return nil, err
	}
	return append(mounts, bind(accountDir, account, "rbind", "ro")), nil
}

func bind(destination, source string, options ...string) object {
	return object{"destination": destination, "type": "bind", "source": source, "options": options}
}

// volume returns the directory that a volume is.
func (c *Container) volume(name string, options ContainerOptions) (string, error) {
	for _, volume := range options.Pod.Volumes {
		switch {
		case volume.Name != name:
		case volume.ConfigMap != nil:
			return c.files(name, options.Config)
		case volume.HostPath != nil:
			if path := options.HostPaths[volume.HostPath.Path]; path != "" {
				return path, nil
			}
			return volume.HostPath.Path, nil
		}
	}
	return "", fmt.Errorf("volume %s is no ConfigMap and no hostPath, or there is none", name)
}

// files makes a directory with files in it.
func (c *Container) files(name string, files map[string]string) (string, error) {
	dir := filepath.Join(c.bundle, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}
