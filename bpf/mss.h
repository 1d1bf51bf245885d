/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maximum segment size that a SYN says (RFC 9293, 3.7.1), lowered where packets to its sender get longer on their
 * way than the other side knows: so they need no error that tells it. At tc alone.
 */
#ifndef WEIR_MSS_H
#define WEIR_MSS_H

#include "scratch.h"

#define TCP_OPTION_END 0
#define TCP_OPTION_NOTHING 1
#define TCP_OPTION_MSS 2

/* Options that are looked at. */
#define MSS_OPTIONS_MAX 10

struct mss_option {
	__u8 kind;
	__u8 length; /* bytes, with these two */
	__be16 mss;
};

static __always_inline bool mss_write(packet_context *context, __u32 transport, __u32 offset, __be16 from, __be16 to)
{
	bool odd = (offset - transport) & 1; /* the sum has the halves the other way around */

	if (bpf_l4_csum_replace(context, transport + __builtin_offsetof(struct tcphdr, check),
				odd ? __builtin_bswap16(from) : from, odd ? __builtin_bswap16(to) : to, sizeof(to)))
		return false;
	return !bpf_skb_store_bytes(context, offset, &to, sizeof(to), 0);
}

/* Looks at the option of scratch->packet that scratch->mss is at. 0: at no more. A global function: verified once. */
__noinline int mss_option_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct mss_option option;
	__u32 transport, offset;
	__be16 most;

	if (!scratch)
		return 0;
	transport = scratch->packet.transport_offset;
	offset = transport + scratch->mss.offset;
	if (scratch->mss.offset + sizeof(option) > scratch->packet.transport_length ||
	    bpf_skb_load_bytes(context, offset, &option, sizeof(option)) || option.kind == TCP_OPTION_END)
		return 0;
	if (option.kind == TCP_OPTION_MSS) {
		most = bpf_htons(scratch->mss.most);
		if (bpf_ntohs(option.mss) > scratch->mss.most)
			scratch->mss.refused =
				!mss_write(context, transport, offset + __builtin_offsetof(struct mss_option, mss),
					   option.mss, most);
		return 0;
	}
	if (option.kind != TCP_OPTION_NOTHING && option.length < 2)
		return 0;
	scratch->mss.offset += option.kind == TCP_OPTION_NOTHING ? 1 : option.length;
	return 1;
}

/* Lowers what scratch->packet, a SYN, says to `most`. False: the kernel refused, and it must be dropped. */
static __always_inline bool mss_clamp(packet_context *context, struct scratch *scratch, __u16 most)
{
	int i;

	scratch->mss = (struct mss){ .most = most, .offset = sizeof(struct tcphdr) };
	for (i = 0; i < MSS_OPTIONS_MAX && mss_option_scratch(context); i++)
		;
	return !scratch->mss.refused;
}

#endif
