/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What an unconnected UDP socket exchanges with a frontend: it keeps its backend, as a flow would, and
 * answers carry the frontend's address. Two entries, one each way.
 */
#ifndef WEIR_SOCKET_FLOW_H
#define WEIR_SOCKET_FLOW_H

#include "socket.h"

static __always_inline void socket_key_fill(struct socket_key *key, __u64 cookie, const struct endpoint *peer,
					    bool reply)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cookie = cookie;
	key->peer = peer->address;
	key->port = bpf_ntohs(peer->port);
	key->reply = reply;
}

/*
 * Makes an exchange the latest of its socket: a chain, along which a released socket's exchanges are removed. One
 * that is known already has its place in it.
 */
static __always_inline void socket_flow_chain(struct bpf_sock_addr *context, const struct endpoint *frontend,
					      const struct socket_key *key, struct socket_flow *flow)
{
	struct socket_flow *known = bpf_map_lookup_elem(&socket_flows, key);
	struct socket_latest *latest;

	if (known) {
		flow->older = known->older;
		flow->older_port = known->older_port;
		return;
	}
	if (!context->sk)
		return;
	latest = bpf_sk_storage_get(&socket_latests, context->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!latest)
		return;
	flow->older = latest->frontend;
	flow->older_port = latest->port;
	latest->frontend = frontend->address;
	latest->port = bpf_ntohs(frontend->port);
}

/*
 * Opens an exchange. False: the socket has this backend under another frontend's name already; its answers
 * could not be told apart.
 */
static __always_inline bool socket_flow_open(struct bpf_sock_addr *context, const struct endpoint *frontend,
					     const struct endpoint *backend, __u32 index, __u32 generation)
{
	struct socket_flow flow = { .index = index, .generation = generation };
	__u64 cookie = bpf_get_socket_cookie(context);
	struct socket_flow *known;
	struct socket_key key;

	socket_key_fill(&key, cookie, backend, true);
	known = bpf_map_lookup_elem(&socket_flows, &key);
	if (known && !(address_equal(&known->peer, &frontend->address) && known->port == bpf_ntohs(frontend->port)))
		return false;
	flow.peer = frontend->address;
	flow.port = bpf_ntohs(frontend->port);
	if (bpf_map_update_elem(&socket_flows, &key, &flow, BPF_ANY))
		return false;
	socket_key_fill(&key, cookie, frontend, false);
	socket_flow_chain(context, frontend, &key, &flow);
	flow.peer = backend->address;
	flow.port = bpf_ntohs(backend->port);
	return !bpf_map_update_elem(&socket_flows, &key, &flow, BPF_ANY);
}

/* Notes that a frontend is left to the packet edges, for good: an exchange does not change its backend. */
static __always_inline void socket_flow_leave(struct bpf_sock_addr *context, const struct endpoint *frontend)
{
	struct socket_flow flow = {};
	struct socket_key key;

	socket_key_fill(&key, bpf_get_socket_cookie(context), frontend, false);
	socket_flow_chain(context, frontend, &key, &flow);
	bpf_map_update_elem(&socket_flows, &key, &flow, BPF_ANY);
}

/* Removes an exchange, both ways; the endpoint becomes the frontend of the one before. False: it was evicted. */
static __always_inline bool socket_flow_remove(__u64 cookie, struct endpoint *frontend)
{
	struct socket_flow *known, flow;
	struct endpoint backend = {};
	struct socket_key key;

	socket_key_fill(&key, cookie, frontend, false);
	known = bpf_map_lookup_elem(&socket_flows, &key);
	if (!known)
		return false;
	flow = *known;
	bpf_map_delete_elem(&socket_flows, &key);
	backend.address = flow.peer;
	backend.port = bpf_htons(flow.port);
	socket_key_fill(&key, cookie, &backend, true);
	bpf_map_delete_elem(&socket_flows, &key);
	frontend->address = flow.older;
	frontend->port = bpf_htons(flow.older_port);
	return true;
}

enum exchange {
	EXCHANGE_NONE,	  /* there is none, or its backend is gone */
	EXCHANGE_BACKEND, /* it goes on with a backend */
	EXCHANGE_LEFT,	  /* it is left to the packet edges */
};

/* What a socket exchanges with a frontend; its backend becomes the endpoint. */
static __always_inline enum exchange socket_flow_find(__u64 cookie, struct endpoint *endpoint)
{
	struct socket_flow *flow;
	struct socket_key key;

	socket_key_fill(&key, cookie, endpoint, false);
	flow = bpf_map_lookup_elem(&socket_flows, &key);
	if (!flow)
		return EXCHANGE_NONE;
	if (!flow->index)
		return EXCHANGE_LEFT;
	if (!backend_is_current(flow->index, flow->generation))
		return EXCHANGE_NONE;
	endpoint->address = flow->peer;
	endpoint->port = bpf_htons(flow->port);
	return EXCHANGE_BACKEND;
}

/* The frontend under which the application knows the sender of an answer. */
static __always_inline bool socket_flow_frontend(__u64 cookie, struct endpoint *endpoint)
{
	struct socket_flow *flow;
	struct socket_key key;

	socket_key_fill(&key, cookie, endpoint, true);
	flow = bpf_map_lookup_elem(&socket_flows, &key);
	if (!flow)
		return false;
	endpoint->address = flow->peer;
	endpoint->port = bpf_htons(flow->port);
	return true;
}

#endif
