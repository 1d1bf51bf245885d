package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-lb/weir/controlplane/apply"
	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/dsr"
	"github.com/weir-lb/weir/controlplane/source/kubernetes"
	"github.com/weir-lb/weir/controlplane/status"
)

// applierOptions say how the maps are written.
func (d *daemon) applierOptions() []apply.Option {
	tunnels := apply.Leaving(func() bool { return d.dsr.Takes() })
	if d.config.dsr() {
		tunnels = apply.Tunnels(func() bool { return d.dsr.Sends() })
	}
	return []apply.Option{apply.MaglevSize(d.config.maglevSize), tunnels}
}

// makeDSR makes what has this node take part in DSR, or keeps it out.
func (d *daemon) makeDSR() error {
	options := dsr.Options{
		Set: d.set, Node: d.config.nodeName, On: d.config.dsr(), Log: d.log,
		Tunnels: d.controller.Tunnels, Ends: d.devices.TunnelEnds, Changed: d.applier.TunnelsChanged,
		Own: func() *corev1.Node { return d.store.Node(d.config.nodeName) },
	}
	if d.client != nil {
		options.Annotator = kubernetes.Annotator{Client: d.client, Node: d.config.nodeName, Advice: d.config.source.connection.Advice()}
	}
	d.dsr = dsr.New(options)
	return nil
}

// takePart takes part in DSR once all that others send here in tunnels is served.
func (d *daemon) takePart(ctx context.Context) error {
	for _, ready := range []<-chan struct{}{d.synced, d.devices.Ready()} {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
		}
	}
	return d.dsr.Run(ctx)
}

// dsrProblems lists what keeps this node from taking part in DSR.
func (d *daemon) dsrProblems() []compile.Problem { return d.dsr.Problems() }

// forwarding says how packets come to backends elsewhere.
func (d *daemon) forwarding() status.Forwarding {
	tunnels := d.controller.Tunnels()
	return status.Forwarding{Mode: d.config.forward, Sends: d.dsr.Sends(), Nodes: len(tunnels.Nodes), Sources: d.devices.TunnelEnds().Sources}
}
