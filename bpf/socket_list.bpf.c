// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Lists the sockets that the socket edge has connected to backends: cookie, peer, cookie, ... The agent, which
 * knows the services, tells which of them are to be closed (socket_destroy.bpf.c).
 */
#include "socket_iterator.h"

static __always_inline int socket_list(struct bpf_iter_meta *meta, void *socket)
{
	struct socket_peer *peer;
	__u64 cookie;

	if (!socket)
		return 0;
	peer = bpf_sk_storage_get(&socket_peers, socket, NULL, 0);
	if (!peer)
		return 0;
	cookie = bpf_get_socket_cookie(socket);
	bpf_seq_write(meta->seq, &cookie, sizeof(cookie));
	bpf_seq_write(meta->seq, peer, sizeof(*peer));
	return 0;
}

SEC("iter/udp")
int socket_list_udp(struct bpf_iter__udp *context)
{
	return socket_list(context->meta, context->udp_sk);
}

SEC("iter/tcp")
int socket_list_tcp(struct bpf_iter__tcp *context)
{
	return socket_list(context->meta, context->sk_common);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
