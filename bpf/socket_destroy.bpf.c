// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Closes the sockets that the agent names, as a reset would: who uses one sees ECONNABORTED, and connects anew
 * (rule D05). Linux 6.5.
 */
#include "socket_iterator.h"

extern int bpf_sock_destroy(struct sock_common *socket) __ksym;

/* By cookie. Written by the agent before it reads an iterator, emptied after. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, __u32);
	__uint(max_entries, 4096);
} doomed_sockets SEC(".maps");

static __always_inline int socket_destroy(struct sock_common *socket)
{
	__u64 cookie;

	if (!socket)
		return 0;
	cookie = bpf_get_socket_cookie(socket);
	if (bpf_map_lookup_elem(&doomed_sockets, &cookie))
		bpf_sock_destroy(socket);
	return 0;
}

SEC("iter/udp")
int socket_destroy_udp(struct bpf_iter__udp *context)
{
	return socket_destroy((struct sock_common *)context->udp_sk);
}

SEC("iter/tcp")
int socket_destroy_tcp(struct bpf_iter__tcp *context)
{
	return socket_destroy(context->sk_common);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
