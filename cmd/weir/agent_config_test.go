package main

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
	"k8s.io/utils/ptr"
)

// TestSettings holds what a configuration asks of the kernel against what kube-proxy would have done.
func TestSettings(t *testing.T) {
	conntrack := func(c kubeproxy.KubeProxyConntrackConfiguration) *kubeproxy.KubeProxyConfiguration {
		return &kubeproxy.KubeProxyConfiguration{Conntrack: c}
	}
	const size, prefix = "/proc/sys/" + conntrackMax, "/proc/sys/net/netfilter/nf_conntrack_"
	for _, test := range []struct {
		name   string
		config *kubeproxy.KubeProxyConfiguration
		cpus   int
		want   []setting
	}{
		{"nothing: room for a small machine", conntrack(kubeproxy.KubeProxyConntrackConfiguration{}), 2, []setting{{size, "131072"}}},
		{"nothing: room for a large machine", conntrack(kubeproxy.KubeProxyConntrackConfiguration{}), 8, []setting{{size, "262144"}}},
		{"the size as it is", conntrack(kubeproxy.KubeProxyConntrackConfiguration{MaxPerCore: ptr.To(int32(0)), Min: ptr.To(int32(7))}), 8, nil},
		{"less", conntrack(kubeproxy.KubeProxyConntrackConfiguration{MaxPerCore: ptr.To(int32(10)), Min: ptr.To(int32(7))}), 8, []setting{{size, "80"}}},
		{"timeouts", conntrack(kubeproxy.KubeProxyConntrackConfiguration{
			MaxPerCore: ptr.To(int32(0)), TCPEstablishedTimeout: &metav1.Duration{Duration: 24 * time.Hour}, TCPCloseWaitTimeout: &metav1.Duration{},
			UDPStreamTimeout: metav1.Duration{Duration: 3 * time.Minute}, TCPBeLiberal: true,
		}), 1, []setting{{prefix + "tcp_timeout_established", "86400"}, {prefix + "udp_timeout_stream", "180"}, {prefix + "tcp_be_liberal", "1"}}},
		{"oomScoreAdj", &kubeproxy.KubeProxyConfiguration{
			OOMScoreAdj: ptr.To(int32(-999)), Conntrack: kubeproxy.KubeProxyConntrackConfiguration{MaxPerCore: ptr.To(int32(0))},
		}, 1, []setting{{"/proc/self/oom_score_adj", "-999"}}},
	} {
		if got := settingsOf(test.config, test.cpus); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestHc4_Late: twice the syncPeriod of the mode that the configuration is for.
func TestHc4_Late(t *testing.T) {
	period := func(d time.Duration) metav1.Duration { return metav1.Duration{Duration: d} }
	config := kubeproxy.KubeProxyConfiguration{}
	config.IPVS.SyncPeriod, config.NFTables.SyncPeriod = period(time.Second), period(time.Minute)
	for mode, want := range map[kubeproxy.ProxyMode]time.Duration{"": time.Minute, "ipvs": 2 * time.Second, "nftables": 2 * time.Minute} {
		config.Mode = mode
		if got := lateAfterOf(&config); got != want {
			t.Errorf("mode %q: %v, want %v", mode, got, want)
		}
	}
}
