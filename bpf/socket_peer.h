/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a connected socket's application is told of its peer: the frontend it had asked for. */
#ifndef WEIR_SOCKET_PEER_H
#define WEIR_SOCKET_PEER_H

#include "socket.h"

/* Replaces the backend the socket is connected to by its frontend; false: it is connected to none. */
static __always_inline bool socket_peer_frontend(struct bpf_sock_addr *context, struct endpoint *endpoint)
{
	struct socket_peer *peer;

	if (!context->sk)
		return false;
	peer = bpf_sk_storage_get(&socket_peers, context->sk, NULL, 0);
	if (!peer || !address_equal(&peer->backend, &endpoint->address) ||
	    peer->backend_port != bpf_ntohs(endpoint->port))
		return false;
	endpoint->address = peer->frontend;
	endpoint->port = bpf_htons(peer->frontend_port);
	return true;
}

#endif
