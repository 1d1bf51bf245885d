/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Addresses of Services that no frontend is for: an unknown port of a ClusterIP, an address of a ServiceCIDR that no
 * Service has. Every packet to anywhere that is of no flow comes by here, hence the bounds before the lookup.
 */
#ifndef WEIR_CLUSTER_IP_H
#define WEIR_CLUSTER_IP_H

#include "config.h"
#include "frontend.h"
#include "socket_lookup.h"

static __always_inline bool address_is_within(const struct address *address, const struct address_bounds *bounds)
{
	return address_compare(&bounds->low, address) <= 0 && address_compare(address, &bounds->high) <= 0;
}

/*
 * What is known of an address; 0: nothing. One of the node itself is nobody else's, whatever range it is in, and so
 * is a ClusterIP that the node has as an address of its own (NodeLocal DNSCache).
 */
static __always_inline __u32 cluster_ip_find(const struct address *address)
{
	struct prefix_key key = { .prefix_length = ADDRESS_PREFIX_MAX };
	__u32 family = !address_is_ipv4(address);
	struct address_bounds *bounds = bpf_map_lookup_elem(&cluster_bounds, &family);
	enum cluster_ip_use *use;

	if (!bounds || !address_is_within(address, bounds))
		return 0;
	key.address = *address;
	use = bpf_map_lookup_elem(&cluster_ips, &key);
	if (!use || address_is_of_node(address) || address_is_local_vip(node_netns, address))
		return 0;
	return *use;
}

#endif
