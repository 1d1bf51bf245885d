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
#include "pick.h"
#include "socket_lookup.h"
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

/* How deep a cgroup may be below which sockets are left. */
#define CGROUP_DEPTH_MAX 16

/* The network namespace of the socket; NULL: it is not known. */
static __always_inline struct network_namespace *socket_namespace(struct bpf_sock_addr *context)
{
	__u64 cookie = bpf_get_netns_cookie(context);

	return bpf_map_lookup_elem(&namespaces, &cookie);
}

static __always_inline bool socket_is_of_node(struct bpf_sock_addr *context)
{
	return !node_netns || bpf_get_netns_cookie(context) == node_netns;
}

/* Whether the calling process is in a cgroup whose sockets are left to the packet edges, or below one. */
static __always_inline bool cgroup_is_left(void)
{
	__u64 id;
	int level;

	for (level = 1; level <= CGROUP_DEPTH_MAX; level++) {
		id = bpf_get_current_ancestor_cgroup_id(level);
		if (!id)
			return false;
		if (bpf_map_lookup_elem(&left_cgroups, &id))
			return true;
	}
	return false;
}

/*
 * Whether the socket is one of those this edge serves. One of a namespace that the agent has not yet found
 * is left to the packet edges: its pod may have asked for that.
 */
static __always_inline bool socket_is_served(struct bpf_sock_addr *context)
{
	struct network_namespace *namespace;

	if (!node_netns)
		return true;
	if (socket_host_only && !socket_is_of_node(context))
		return false;
	namespace = socket_namespace(context);
	if (!namespace || namespace->flags & NAMESPACE_LEFT)
		return false;
	return !(namespace->flags & NAMESPACE_CGROUPS) || !cgroup_is_left();
}

/* The address that the socket is bound to, of the destination's family; false: none. */
static __always_inline bool socket_bound_address(struct bpf_sock_addr *context, const struct endpoint *destination,
						 struct address *bound)
{
	struct bpf_sock *socket = context->sk;
	__be32 *words = address_words(bound);

	if (!socket)
		return false;
	if (address_is_ipv4(&destination->address)) {
		address_set_ipv4(bound, socket->src_ip4);
		return socket->src_ip4 != 0;
	}
	words[0] = socket->src_ip6[0];
	words[1] = socket->src_ip6[1];
	words[2] = socket->src_ip6[2];
	words[3] = socket->src_ip6[3];
	return !address_is_zero(bound);
}

/*
 * Who asks for the destination: the address that the socket is bound to, else that of its network namespace,
 * which the agent has from the routes there. False: it cannot be known.
 */
static __always_inline bool socket_client(struct bpf_sock_addr *context, const struct endpoint *destination,
					  struct address *client)
{
	struct network_namespace *namespace;

	if (socket_bound_address(context, destination, client))
		return true;
	if (address_is_loopback(&destination->address)) {
		*client = destination->address;
		return true;
	}
	namespace = socket_namespace(context);
	if (!namespace)
		return false;
	*client = address_is_ipv4(&destination->address) ? namespace->ipv4 : namespace->ipv6;
	return !address_is_zero(client);
}

/* Fails the system call. Before Linux 5.18 the error is EPERM, whatever is asked for. */
static __always_inline int socket_refuse(int error)
{
	if (have_set_retval)
		bpf_set_retval(-error);
	return SOCKET_REFUSE;
}

/*
 * Whether a destination answers without us: a socket listens on exactly the ClusterIP in the namespace of the
 * client (NodeLocal DNSCache). What the node's own namespace has, pods reach by the pod edge, which looks there.
 */
static __always_inline bool socket_finds_local_listener(struct bpf_sock_addr *context,
							const struct endpoint *endpoint,
							const struct service_view *view)
{
	__u64 cookie = bpf_get_netns_cookie(context);
	struct bpf_sock_tuple tuple;

	if (view->kind != FRONTEND_CLUSTER_IP)
		return false;
	if (cookie != node_netns && address_is_local_vip(node_netns, &endpoint->address))
		return true;
	if (!address_is_local_vip(cookie, &endpoint->address) ||
	    !socket_listens(context, &tuple, &endpoint->address, endpoint->port, endpoint->protocol))
		return false;
	count(pass_local_listener);
	return true;
}

/*
 * Whether a pod asks a ClusterIP whose backends shall see the node (masqueradeAll): that is left to the packet edges.
 * A process of the node has the node's address as it is.
 */
static __always_inline bool socket_is_masqueraded(struct bpf_sock_addr *context, const struct service_view *view)
{
	return masquerade_mark && view->kind == FRONTEND_CLUSTER_IP && !socket_is_of_node(context);
}

/*
 * UDP to 0.0.0.1, port 1, where nobody can be: weir status asks for it from a process in another cgroup, to see
 * whether the hooks are there. Nothing else refuses it.
 */
static __always_inline bool socket_is_probe(const struct bpf_sock_addr *context)
{
	return context->user_ip4 == bpf_htonl(1) && (__be16)context->user_port == bpf_htons(1) &&
	       context->protocol == IPPROTO_UDP;
}

/* How many backends are tried where the first is of no use to a socket. */
#define SOCKET_PICKS 8

/* Who asks, where the service wants to know; zero: it cannot be known, or does not matter. */
static __always_inline void socket_affinity_client(struct bpf_sock_addr *context, const struct endpoint *frontend,
						   const struct service *service, struct address *client)
{
	__builtin_memset(client, 0, sizeof(*client));
	if (service->affinity_timeout)
		socket_client(context, frontend, client);
}

/*
 * A backend for a socket: at the first attempt the one that the client is to have, then those in a row of the table.
 * Maglev goes by chance: the socket may have no port yet. 0: none, and `error` is what the application is to be told.
 */
static __always_inline __u32 socket_pick(const struct service *service, const struct address *client, __u32 start,
					 __u32 attempt, int *error)
{
	enum algorithm algorithm;
	const struct slot_range *table = service_table(service, SIDE_INSIDE, &algorithm);
	__u32 slots_count = table->count;

	if (slots_count && attempt)
		return slot_read(table, (start + attempt) % slots_count);
	if (slots_count)
		return pick_healthy(table->base, slots_count, pick_backend(service, SIDE_INSIDE, client, start));
	if (service->flags & SERVICE_NO_ENDPOINTS) {
		count(refuse_no_endpoint);
		*error = ECONNREFUSED;
	} else {
		count(refuse_no_local_endpoint);
		*error = EHOSTUNREACH;
	}
	return 0;
}

/* Accounts a socket that has got a backend of a service. */
static __always_inline void socket_served(const struct service *service, const struct address *client, __u32 index,
					  __u32 generation)
{
	if (service_knows(service, client))
		affinity_remember(service->affinity_group, address_high(client), address_low(client), index,
				  generation);
	traffic_count_flow(service->id, index);
	count(socket_translated);
}

/* The service an application has named. A pod's loopback is its own: NodePorts answer on the node's. */
static __always_inline enum service_result socket_service(struct bpf_sock_addr *context,
							  const struct endpoint *endpoint, struct service_view *view)
{
	bool local = localhost_node_ports && socket_is_of_node(context);

	return service_find(&endpoint->address, endpoint->port, endpoint->protocol, local, view);
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
