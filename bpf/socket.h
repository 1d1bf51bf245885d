/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The socket edge: a destination is replaced where an application names it, once, before there is a packet.
 * The application goes on seeing the frontend it asked for. Shared by the cgroup hooks; IPv4, IPv6 and IPv4
 * on IPv6 sockets are one: addresses are v4-mapped.
 */
#ifndef WEIR_SOCKET_H
#define WEIR_SOCKET_H

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/in.h>

#include "config.h"
#include "frontend.h"
#include "stats.h"

/* What a cgroup hook returns. */
#define SOCKET_PROCEED 1
#define SOCKET_REFUSE 0

/* The destination an application has named, or the peer it is about to be told. */
struct endpoint {
	struct address address;
	__be16 port;
	__u8 protocol;
};

static __always_inline void endpoint_read4(struct endpoint *endpoint, const struct bpf_sock_addr *context)
{
	address_set_ipv4(&endpoint->address, context->user_ip4);
	endpoint->port = (__be16)context->user_port;
	endpoint->protocol = context->protocol;
}

static __always_inline void endpoint_read6(struct endpoint *endpoint, const struct bpf_sock_addr *context)
{
	__be32 *words = address_words(&endpoint->address);

	words[0] = context->user_ip6[0];
	words[1] = context->user_ip6[1];
	words[2] = context->user_ip6[2];
	words[3] = context->user_ip6[3];
	endpoint->port = (__be16)context->user_port;
	endpoint->protocol = context->protocol;
}

static __always_inline void endpoint_write4(struct bpf_sock_addr *context, const struct endpoint *endpoint)
{
	context->user_ip4 = address_ipv4(&endpoint->address);
	context->user_port = endpoint->port;
}

static __always_inline void endpoint_write6(struct bpf_sock_addr *context, const struct endpoint *endpoint)
{
	const __be32 *words = address_words_const(&endpoint->address);

	context->user_ip6[0] = words[0];
	context->user_ip6[1] = words[1];
	context->user_ip6[2] = words[2];
	context->user_ip6[3] = words[3];
	context->user_port = endpoint->port;
}

/* Whether the socket is one of those this edge serves. */
static __always_inline bool socket_is_served(struct bpf_sock_addr *context)
{
	return !socket_host_netns || bpf_get_netns_cookie(context) == socket_host_netns;
}

/* Fails the system call. Before Linux 5.18 the error is EPERM, whatever is asked for. */
static __always_inline int socket_refuse(int error)
{
	if (have_set_retval)
		bpf_set_retval(-error);
	return SOCKET_REFUSE;
}

/* A backend for a socket. 0: none, and `error` is what the application is to be told. */
static __always_inline __u32 socket_pick(const struct service *service, int *error)
{
	enum algorithm algorithm;
	const struct slot_range *range = service_table(service, SIDE_INSIDE, &algorithm);
	__u32 slots_count = range->count;

	if (slots_count)
		return slot_read(range, bpf_get_prandom_u32() % slots_count);
	if (service->flags & SERVICE_NO_ENDPOINTS) {
		count(refuse_no_endpoint);
		*error = ECONNREFUSED;
	} else {
		count(refuse_no_local_endpoint);
		*error = EHOSTUNREACH;
	}
	return 0;
}

/* The service an application has named. */
static __always_inline enum service_result socket_service(const struct endpoint *endpoint, struct service_view *view)
{
	return service_find(&endpoint->address, endpoint->port, endpoint->protocol, localhost_node_ports, view);
}

static __always_inline void endpoint_set_backend(struct endpoint *endpoint, const struct backend *backend)
{
	endpoint->address = backend->address;
	endpoint->port = bpf_htons(backend->port);
}

/* Whether a socket may still talk to that backend. */
static __always_inline bool backend_is_current(__u32 index, __u32 generation)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return backend && backend->generation == generation && !(backend->flags & BACKEND_GONE);
}

#endif
