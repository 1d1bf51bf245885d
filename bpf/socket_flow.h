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
 * Opens an exchange. False: the socket has this backend under another frontend's name already; its answers
 * could not be told apart.
 */
static __always_inline bool socket_flow_open(__u64 cookie, const struct endpoint *frontend,
					     const struct endpoint *backend, __u32 index, __u32 generation)
{
	struct socket_flow flow = { .index = index, .generation = generation };
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
	flow.peer = backend->address;
	flow.port = bpf_ntohs(backend->port);
	return !bpf_map_update_elem(&socket_flows, &key, &flow, BPF_ANY);
}

/* Notes that a frontend is left to the packet edges, for good: an exchange does not change its backend. */
static __always_inline void socket_flow_leave(__u64 cookie, const struct endpoint *frontend)
{
	struct socket_flow flow = {};
	struct socket_key key;

	socket_key_fill(&key, cookie, frontend, false);
	bpf_map_update_elem(&socket_flows, &key, &flow, BPF_ANY);
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
