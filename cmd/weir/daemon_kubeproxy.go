package main

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weir-lb/weir/controlplane/kubeproxy"
)

const (
	// releaseEvery is the least pause between two looks at whether connections of kube-proxy go on, where it was removed.
	releaseEvery = 2 * time.Second
	// releaseShare is how many times as long as a look took the pause is: conntrack may have a million of them.
	releaseShare = 50
)

// releaseKubeProxy removes what `weir cleanup --kube-proxy` has left for connections, when these have ended.
func (d *daemon) releaseKubeProxy(ctx context.Context) error {
	for {
		begin := time.Now()
		_, removed, err := kubeproxy.Release()
		if err != nil {
			d.log.Warn("look after the connections that kube-proxy has translated", zap.Error(err))
		}
		if len(removed) > 0 {
			d.log.Info("the connections that kube-proxy has translated have ended", zap.String("removed", strings.Join(removed, ", ")))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(releaseEvery, releaseShare*time.Since(begin))):
		}
	}
}
