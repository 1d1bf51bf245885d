/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connected sockets count as open to their backend, until they are released or connect anew. */
#ifndef WEIR_SOCKET_LOAD_H
#define WEIR_SOCKET_LOAD_H

#include "load.h"

/* A socket has no more to do with its backend, whose index may be another's by now. Counts once. */
static __always_inline void peer_leave(struct socket_peer *peer)
{
	__u32 index = peer->index;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	if (peer->generation && backend && backend->generation == peer->generation)
		load_add_socket(index, -1);
	peer->generation = 0;
}

#endif
