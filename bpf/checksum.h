/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Internet checksums: sums and differences in one's complement (RFC 1071, RFC 1624). */
#ifndef WEIR_CHECKSUM_H
#define WEIR_CHECKSUM_H

#include "address.h"

/* A 64-bit accumulator of 32-bit words, folded to a 32-bit sum as the kernel's __wsum. */
static __always_inline __u32 checksum_sum(__u64 accumulator)
{
	accumulator = (accumulator & 0xffffffff) + (accumulator >> 32);
	accumulator = (accumulator & 0xffffffff) + (accumulator >> 32);
	return accumulator;
}

/* A 32-bit sum folded to 16 bits, not complemented. */
static __always_inline __u16 checksum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* What the sum grows by when `from` becomes `to`. */
static __always_inline __u64 checksum_delta(__be32 from, __be32 to)
{
	return (__u64)(__u32)~from + to;
}

static __always_inline __u64 checksum_delta_address(const struct address *from, const struct address *to, bool ipv6)
{
	const __be32 *old = address_words_const(from);
	const __be32 *new = address_words_const(to);
	__u64 delta = checksum_delta(old[3], new[3]);

	if (ipv6)
		delta += checksum_delta(old[0], new[0]) + checksum_delta(old[1], new[1]) +
			 checksum_delta(old[2], new[2]);
	return delta;
}

/* The checksum field of a header some of whose words have changed by `delta`. */
static __always_inline __u16 checksum_apply(__u16 field, __u32 delta)
{
	return ~checksum_fold(checksum_sum((__u64)(__u16)~field + delta));
}

#endif
