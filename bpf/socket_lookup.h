/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which socket of a network namespace would take what comes for an address. */
#ifndef WEIR_SOCKET_LOOKUP_H
#define WEIR_SOCKET_LOOKUP_H

#include <linux/in.h>

#include "address.h"
#include "config.h"
#include "maps.h"

/* Returns the size that tells the kernel the family. */
static __always_inline __u32 socket_tuple_fill(struct bpf_sock_tuple *tuple, const struct address *remote,
					       __be16 remote_port, const struct address *local, __be16 local_port)
{
	if (address_is_ipv4(local)) {
		tuple->ipv4.saddr = address_ipv4(remote);
		tuple->ipv4.daddr = address_ipv4(local);
		tuple->ipv4.sport = remote_port;
		tuple->ipv4.dport = local_port;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, remote, sizeof(tuple->ipv6.saddr));
	__builtin_memcpy(tuple->ipv6.daddr, local, sizeof(tuple->ipv6.daddr));
	tuple->ipv6.sport = remote_port;
	tuple->ipv6.dport = local_port;
	return sizeof(tuple->ipv6);
}

static __always_inline bool socket_is_bound_to(const struct bpf_sock *socket, const struct address *address)
{
	const __be32 *words = address_words_const(address);

	if (address_is_ipv4(address))
		return socket->src_ip4 == words[3];
	return !((socket->src_ip6[0] ^ words[0]) | (socket->src_ip6[1] ^ words[1]) | (socket->src_ip6[2] ^ words[2]) |
		 (socket->src_ip6[3] ^ words[3]));
}

/* Whether a socket there waits for clients on exactly that address, not on any. `tuple` is room to work in. */
static __always_inline bool socket_listens(void *context, struct bpf_sock_tuple *tuple, const struct address *address,
					   __be16 port, __u8 protocol)
{
	const struct address nobody = {};
	__u32 size = socket_tuple_fill(tuple, &nobody, 0, address, port);
	struct bpf_sock *socket;
	bool exactly;

	if (protocol == IPPROTO_SCTP) /* no program can look them up */
		return false;
	if (protocol == IPPROTO_TCP)
		socket = bpf_sk_lookup_tcp(context, tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		socket = bpf_sk_lookup_udp(context, tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	exactly = socket_is_bound_to(socket, address);
	bpf_sk_release(socket);
	return exactly;
}

/* Whether a network namespace has a ClusterIP as an address of its own. */
static __always_inline bool address_is_local_vip(__u64 cookie, const struct address *address)
{
	struct local_vip key = { .cookie = cookie, .address = *address };

	return bpf_map_lookup_elem(&local_vips, &key) != NULL;
}

#endif
