// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* cgroup/recvmsg: the sender of a datagram is the frontend the application had sent to. */
#include "socket_flow.h"
#include "socket_peer.h"

static __always_inline bool recvmsg_translate(struct bpf_sock_addr *context, struct endpoint *endpoint)
{
	return socket_peer_frontend(context, endpoint) ||
	       socket_flow_frontend(bpf_get_socket_cookie(context), endpoint);
}

SEC("cgroup/recvmsg4")
int socket_recvmsg4(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;

	endpoint_read4(&endpoint, context);
	if (recvmsg_translate(context, &endpoint))
		endpoint_write4(context, &endpoint);
	return SOCKET_PROCEED;
}

SEC("cgroup/recvmsg6")
int socket_recvmsg6(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;

	endpoint_read6(&endpoint, context);
	if (recvmsg_translate(context, &endpoint))
		endpoint_write6(context, &endpoint);
	return SOCKET_PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
