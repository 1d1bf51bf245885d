// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/bind: a node address and an active NodePort are taken (rule N08), and the conflict shows where it
 * is made.
 */
#include "socket.h"

static __always_inline bool bind_takes_node_port(const struct endpoint *endpoint)
{
	struct frontend_key key;

	if (!endpoint->port)
		return false;
	frontend_key_fill(&key, &endpoint->address, endpoint->port, endpoint->protocol);
	frontend_key_any_address(&key);
	if (!bpf_map_lookup_elem(&frontends, &key))
		return false;
	return address_equal(&key.address, &endpoint->address) || address_is_of_node(&endpoint->address);
}

static __always_inline int bind_check(struct bpf_sock_addr *context, const struct endpoint *endpoint)
{
	if (!socket_is_of_node(context) || !bind_takes_node_port(endpoint))
		return SOCKET_PROCEED;
	count(refuse_bind);
	return socket_refuse(EADDRINUSE);
}

SEC("cgroup/bind4")
int socket_bind4(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;

	endpoint_read4(&endpoint, context);
	return bind_check(context, &endpoint);
}

SEC("cgroup/bind6")
int socket_bind6(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;

	endpoint_read6(&endpoint, context);
	return bind_check(context, &endpoint);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
