package main

import (
	"context"
	"net/netip"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/weir-lb/weir/controlplane/detectlocal"
)

// followPause is the shortest time between two looks at what has changed.
const followPause = time.Second

// followBackends tells the devices where backends have come to or left, and what the node's own addresses are, and the
// network namespaces that addresses have become ClusterIPs. What that costs depends on what has changed alone.
func (d *daemon) followBackends(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.applied:
		}
		d.devices.SetPrimary(addressesOf(d.store.Node(d.config.nodeName)))
		d.followPodCIDRs()
		moves := d.controller.Moves()
		d.devices.ChangeBackends(moves.Backends)
		if d.namespaces != nil && moves.ClusterIPs {
			d.namespaces.TouchClusterIPs()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPause):
		}
	}
}

// followPodCIDRs takes in the prefixes of the node's pods, where detectLocalMode goes by them.
func (d *daemon) followPodCIDRs() {
	if d.config.local.Static() {
		return
	}
	if err := detectlocal.Write(d.set, d.config.local.Prefixes(d.store.Node(d.config.nodeName))); err != nil {
		d.log.Error("follow the prefixes of the node's pods", zap.Error(err))
	}
}

// addressesOf returns the internal addresses of a node, in its order; none of no node.
func addressesOf(node *corev1.Node) []netip.Addr {
	if node == nil {
		return nil
	}
	var addresses []netip.Addr
	for _, a := range node.Status.Addresses {
		address, valid := netip.AddrFromSlice(netutils.ParseIPSloppy(a.Address))
		if valid && a.Type == corev1.NodeInternalIP {
			addresses = append(addresses, address.Unmap())
		}
	}
	return addresses
}
