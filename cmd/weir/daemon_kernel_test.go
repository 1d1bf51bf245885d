package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
	"k8s.io/utils/ptr"
)

// TestSettings holds what a configuration asks of the kernel against what kube-proxy would have done.
func TestSettings(t *testing.T) {
	conntrack := func(c kubeproxy.KubeProxyConntrackConfiguration) *kubeproxy.KubeProxyConfiguration {
		return &kubeproxy.KubeProxyConfiguration{Conntrack: c}
	}
	const prefix = "/proc/sys/net/netfilter/nf_conntrack_"
	size := func(max, buckets string) []setting {
		return []setting{{conntrackMax, max, true}, {conntrackBuckets, buckets, true}}
	}
	for _, test := range []struct {
		name   string
		config *kubeproxy.KubeProxyConfiguration
		cpus   int
		want   []setting
	}{
		{"nothing: room for a small machine", conntrack(kubeproxy.KubeProxyConntrackConfiguration{}), 2, size("131072", "32768")},
		{"nothing: room for a large machine", conntrack(kubeproxy.KubeProxyConntrackConfiguration{}), 8, size("262144", "65536")},
		{"the size as it is", conntrack(kubeproxy.KubeProxyConntrackConfiguration{MaxPerCore: ptr.To(int32(0)), Min: ptr.To(int32(7))}), 8, nil},
		{"less", conntrack(kubeproxy.KubeProxyConntrackConfiguration{MaxPerCore: ptr.To(int32(10)), Min: ptr.To(int32(7))}), 8, size("80", "20")},
		{"timeouts", conntrack(kubeproxy.KubeProxyConntrackConfiguration{
			MaxPerCore: ptr.To(int32(0)), TCPEstablishedTimeout: &metav1.Duration{Duration: 24 * time.Hour}, TCPCloseWaitTimeout: &metav1.Duration{},
			UDPStreamTimeout: metav1.Duration{Duration: 3 * time.Minute}, TCPBeLiberal: true,
		}), 1, []setting{{prefix + "tcp_timeout_established", "86400", false}, {prefix + "udp_timeout_stream", "180", false}, {prefix + "tcp_be_liberal", "1", false}}},
		{"oomScoreAdj", &kubeproxy.KubeProxyConfiguration{
			OOMScoreAdj: ptr.To(int32(-999)), Conntrack: kubeproxy.KubeProxyConntrackConfiguration{MaxPerCore: ptr.To(int32(0))},
		}, 1, []setting{{"/proc/self/oom_score_adj", "-999", false}}},
	} {
		if got := settingsOf(test.config, test.cpus); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestRaise raises a number, and never lowers it.
func TestRaise(t *testing.T) {
	for _, test := range []struct {
		held, value, want string
		raise             bool
	}{
		{"16384\n", "32768", "32768", true},
		{"32768\n", "16384", "32768\n", true},
		{"9\n", "10", "10", true},
		{"300\n", "180", "180", false},
	} {
		path := filepath.Join(t.TempDir(), "hashsize")
		if err := os.WriteFile(path, []byte(test.held), 0o600); err != nil {
			t.Fatal(err)
		}
		if problems := applyAll([]setting{{path, test.value, test.raise}}, zap.NewNop()); len(problems) > 0 {
			t.Errorf("%+v: %v", test, problems)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != test.want {
			t.Errorf("%+v: it is %q now (%v)", test, got, err)
		}
	}
}

// TestAdvice says what to do where a setting is refused, as sysfs is in a container that is not privileged.
func TestAdvice(t *testing.T) {
	buckets := setting{conntrackBuckets, "32768", true}
	const do = "on the node run: echo 32768 > /sys/module/nf_conntrack/parameters/hashsize"
	for _, test := range []struct {
		err  error
		want string
	}{
		{&os.PathError{Err: unix.EROFS}, "sysfs is mounted read-only here: mount it writable, or " + do},
		{os.ErrNotExist, "sysfs is not mounted here: mount it, or " + do},
		{errors.New("something else"), do},
	} {
		if got := buckets.advice(test.err); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
}

// TestConntrackSettings sets what a configuration asks for of connection tracking in a network namespace of its own. How
// many connections there are at most, and buckets, is of the whole machine: there they are refused, and it is said what to
// do.
func TestConntrackSettings(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	held, err := os.ReadFile(conntrackMax)
	if err != nil {
		t.Skip("the kernel tracks no connections")
	}
	var most int
	if _, err := fmt.Sscan(string(held), &most); err != nil {
		t.Fatal(err)
	}
	second := func(n int) metav1.Duration { return metav1.Duration{Duration: time.Duration(n) * time.Second} }
	config := &kubeproxy.KubeProxyConfiguration{Conntrack: kubeproxy.KubeProxyConntrackConfiguration{
		MaxPerCore: ptr.To(int32(most + 4)), Min: ptr.To(int32(1)),
		TCPEstablishedTimeout: ptr.To(second(86401)), TCPCloseWaitTimeout: ptr.To(second(3601)),
		UDPTimeout: second(31), UDPStreamTimeout: second(181), TCPBeLiberal: true,
	}}
	problems := applyAll(settingsOf(config, 1), zap.NewNop())
	for name, want := range map[string]string{
		"tcp_timeout_established": "86401", "tcp_timeout_close_wait": "3601", "udp_timeout": "31", "udp_timeout_stream": "181",
		"tcp_be_liberal": "1", "max": strings.TrimSpace(string(held)),
	} {
		got, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("nf_conntrack_%s is %q, want %q (%v)", name, got, want, err)
		}
	}
	if len(problems) == 0 || problems[0].Reason != "SettingRefused" ||
		!strings.Contains(problems[0].Message, fmt.Sprintf("on the node run: echo %d > %s", most+4, conntrackMax)) {
		t.Errorf("the size of the table is refused here, and that is said: %v", problems)
	}
}

// TestReadOnlySysfs has the number of buckets raised where sysfs is mounted read-only, as in containers of some runtimes.
func TestReadOnlySysfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts sysfs")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its mounts with it
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/sys", "/sys", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	held, err := os.ReadFile(conntrackBuckets)
	if err != nil {
		t.Skip("the kernel tracks no connections")
	}
	problems := applyAll([]setting{{conntrackBuckets, "1" + strings.TrimSpace(string(held)), true}}, zap.NewNop())
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "sysfs is mounted read-only here: mount it writable, or on the node run: echo 1") {
		t.Errorf("a read-only sysfs is not told of: %v", problems)
	}
}
