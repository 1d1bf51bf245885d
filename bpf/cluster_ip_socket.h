/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Destinations that no frontend is for, at the socket edge. */
#ifndef WEIR_CLUSTER_IP_SOCKET_H
#define WEIR_CLUSTER_IP_SOCKET_H

#include "cluster_ip.h"
#include "socket.h"

/* A socket asks for no port at all where it only wants to know what its source would be. */
static __always_inline bool endpoint_is_asked_for(const struct endpoint *endpoint)
{
	return endpoint->port && (endpoint->protocol == IPPROTO_TCP || endpoint->protocol == IPPROTO_UDP);
}

/* Returns what the hook returns. What the client's own network namespace has as an address is left alone. */
static __always_inline int socket_unclaimed(struct bpf_sock_addr *context, const struct endpoint *endpoint)
{
	__u32 use;

	if (!endpoint_is_asked_for(endpoint))
		return SOCKET_PROCEED;
	use = cluster_ip_find(&endpoint->address);
	if (!use || use == CLUSTER_IP_LEFT || address_is_local_vip(bpf_get_netns_cookie(context), &endpoint->address))
		return SOCKET_PROCEED;
	if (use == CLUSTER_IP_ALLOCATED) {
		count(refuse_unknown_port);
		return socket_refuse(ECONNREFUSED);
	}
	count(refuse_unallocated);
	return socket_refuse(EHOSTUNREACH);
}

#endif
