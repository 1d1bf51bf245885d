/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Iterators over the sockets of one network namespace: that of the reader. The parts of the kernel's contexts
 * that are read, found by BTF (net/ipv4/udp.c, net/ipv4/tcp_ipv4.c).
 */
#ifndef WEIR_SOCKET_ITERATOR_H
#define WEIR_SOCKET_ITERATOR_H

#include "maps.h"

struct seq_file;
struct udp_sock;

struct sock_common {
	unsigned short skc_family;
} __attribute__((preserve_access_index));

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

#endif
