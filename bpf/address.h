/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses of both families in one shape: v4-mapped IPv6, read as four 32-bit words. */
#ifndef WEIR_ADDRESS_H
#define WEIR_ADDRESS_H

#include <stdbool.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define IPV4_MAPPED_PREFIX bpf_htonl(0x0000ffff)

static __always_inline __be32 *address_words(struct address *address)
{
	return (__be32 *)address->bytes;
}

static __always_inline const __be32 *address_words_const(const struct address *address)
{
	return (const __be32 *)address->bytes;
}

/* The IPv4 address in it; of an IPv6 address, its last 32 bits. */
static __always_inline __be32 address_ipv4(const struct address *address)
{
	return address_words_const(address)[3];
}

static __always_inline void address_set_ipv4(struct address *address, __be32 ipv4)
{
	__be32 *words = address_words(address);

	words[0] = 0;
	words[1] = 0;
	words[2] = IPV4_MAPPED_PREFIX;
	words[3] = ipv4;
}

static __always_inline void address_set_ipv6(struct address *address, const struct in6_addr *ipv6)
{
	__be32 *words = address_words(address);

	words[0] = ipv6->in6_u.u6_addr32[0];
	words[1] = ipv6->in6_u.u6_addr32[1];
	words[2] = ipv6->in6_u.u6_addr32[2];
	words[3] = ipv6->in6_u.u6_addr32[3];
}

static __always_inline bool address_is_ipv4(const struct address *address)
{
	const __be32 *words = address_words_const(address);

	return !(words[0] | words[1] | (words[2] ^ IPV4_MAPPED_PREFIX));
}

/* No address at all: how a record says "none". */
static __always_inline bool address_is_zero(const struct address *address)
{
	const __be32 *words = address_words_const(address);

	return !(words[0] | words[1] | words[2] | words[3]);
}

static __always_inline bool address_equal(const struct address *a, const struct address *b)
{
	const __be32 *x = address_words_const(a);
	const __be32 *y = address_words_const(b);
	__u32 difference = (x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]);

	/* Or the compiler compares word by word, and the verifier follows all 16 ways that can go. */
	barrier_var(difference);
	return !difference;
}

/* Less than 0, 0 or more: as numbers. */
static __always_inline int address_compare(const struct address *a, const struct address *b)
{
	const __be32 *x = address_words_const(a);
	const __be32 *y = address_words_const(b);
	int i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		if (x[i] != y[i])
			return bpf_ntohl(x[i]) < bpf_ntohl(y[i]) ? -1 : 1;
	}
	return 0;
}

static __always_inline bool address_is_loopback(const struct address *address)
{
	const __be32 *words = address_words_const(address);

	if (address_is_ipv4(address))
		return bpf_ntohl(words[3]) >> 24 == 127;
	return !(words[0] | words[1] | words[2]) && words[3] == bpf_htonl(1);
}

/* Whether a host may have it as a source: not unspecified, loopback, link-local IPv6, or multicast. */
static __always_inline bool address_is_host(const struct address *address)
{
	const __be32 *words = address_words_const(address);
	__u32 top;

	if (address_is_ipv4(address)) {
		top = bpf_ntohl(words[3]) >> 24;
		return top != 0 && top != 127 && top < 224;
	}
	top = bpf_ntohl(words[0]) >> 16;
	if (top >= 0xff00 || (top & 0xffc0) == 0xfe80)
		return false;
	return (words[0] | words[1] | words[2]) != 0;
}

#endif
