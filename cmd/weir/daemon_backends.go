package main

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/weir-lb/weir/controlplane/compile"
	"github.com/weir-lb/weir/controlplane/detectlocal"
)

// followPause is the shortest time between two looks at where the backends are.
const followPause = time.Second

// followBackends tells the devices where backends are, and what the node's own addresses are, after these have
// changed.
func (d *daemon) followBackends(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.applied:
		}
		d.devices.SetPrimary(addressesOf(d.store.Node(d.config.nodeName)))
		d.followPodCIDRs()
		services := d.controller.Services()
		d.devices.SetBackends(backendsElsewhere(services))
		if d.namespaces != nil {
			d.namespaces.SetClusterIPs(clusterIPs(services))
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

// backendsElsewhere returns the addresses of the backends that are not on this node, sorted.
func backendsElsewhere(services []compile.Service) []netip.Addr {
	addresses := map[netip.Addr]struct{}{}
	for _, service := range services {
		for _, backends := range [][]compile.Backend{service.Inside, service.Outside} {
			for _, backend := range backends {
				if !backend.Local {
					addresses[backend.Address.Addr()] = struct{}{}
				}
			}
		}
	}
	return slices.SortedFunc(maps.Keys(addresses), netip.Addr.Compare)
}

// clusterIPs returns the ClusterIPs, with the names of their Services.
func clusterIPs(services []compile.Service) map[netip.Addr]string {
	addresses := map[netip.Addr]string{}
	for _, service := range services {
		for _, frontend := range service.Frontends {
			if frontend.Kind == compile.ClusterIP {
				addresses[frontend.Address.Addr()] = service.ID.Namespace + "/" + service.ID.Name
			}
		}
	}
	return addresses
}
