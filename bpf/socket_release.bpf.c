// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/sock_release: what an unconnected UDP socket has exchanged with frontends is forgotten with it, and a
 * connected socket is no more open to its backend.
 */
#include "socket_flow.h"
#include "socket_load.h"

/* A socket that has sent to more frontends than that leaves the rest to eviction. */
#define RELEASE_EXCHANGES 64

SEC("cgroup/sock_release")
int socket_release(struct bpf_sock *context)
{
	struct endpoint frontend = {};
	struct socket_latest *latest;
	struct socket_peer *peer;
	__u64 cookie;
	int i;

	peer = bpf_sk_storage_get(&socket_peers, context, NULL, 0);
	if (peer)
		peer_leave(peer);
	if (context->protocol != IPPROTO_UDP)
		return SOCKET_PROCEED;
	latest = bpf_sk_storage_get(&socket_latests, context, NULL, 0);
	if (!latest)
		return SOCKET_PROCEED;
	cookie = bpf_get_socket_cookie(context);
	frontend.address = latest->frontend;
	frontend.port = bpf_htons(latest->port);
	for (i = 0; i < RELEASE_EXCHANGES; i++) {
		if (!frontend.port || !socket_flow_remove(cookie, &frontend))
			break;
	}
	return SOCKET_PROCEED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
