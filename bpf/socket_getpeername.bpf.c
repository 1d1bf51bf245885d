// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* cgroup/getpeername: the peer of a socket is the frontend the application had connected it to. */
#include "socket_peer.h"

SEC("cgroup/getpeername4")
int socket_getpeername4(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;

	endpoint_read4(&endpoint, context);
	if (socket_peer_frontend(context, &endpoint))
		endpoint_write4(context, &endpoint);
	return SOCKET_PROCEED;
}

SEC("cgroup/getpeername6")
int socket_getpeername6(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;

	endpoint_read6(&endpoint, context);
	if (socket_peer_frontend(context, &endpoint))
		endpoint_write6(context, &endpoint);
	return SOCKET_PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
