package main

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

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
