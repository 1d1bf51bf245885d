/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets that may not talk to a frontend. */
#ifndef WEIR_ACCESS_SOCKET_H
#define WEIR_ACCESS_SOCKET_H

#include "access.h"
#include "socket.h"

/* A client that is not known may use what has no source ranges. */
static __always_inline bool socket_source_is_admitted(struct bpf_sock_addr *context, const struct endpoint *endpoint,
						      const struct service_view *view)
{
	struct address client;

	if (!(view->service->flags & SERVICE_SOURCE_RANGES) || view->kind != FRONTEND_LOAD_BALANCER)
		return true;
	return socket_client(context, endpoint, &client) && source_is_admitted(view, &client);
}

/* Counts the socket if it may not use the frontend; `verdict` is then what the hook returns. */
static __always_inline bool socket_is_admitted(struct bpf_sock_addr *context, const struct endpoint *endpoint,
					       const struct service_view *view, int *verdict)
{
	if (socket_source_is_admitted(context, endpoint, view))
		return true;
	count(refuse_source_denied);
	*verdict = socket_refuse(EHOSTUNREACH);
	return false;
}

#endif
