/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet that is made to come by another device than it did, or by the one that it was about to leave by: to the
 * programs there, which see it as it is, and then to the stack. At tc alone.
 */
#ifndef WEIR_MOVE_H
#define WEIR_MOVE_H

#include "device.h"
#include "scratch.h"

/* Whom it is from then: a bridge that learned its real source there would be wrong. */
#define MOVED_FROM { 0x02, 'w', 'e', 'i', 'r', 0 }

/* The verdict of scratch->packet, for packet_move_scratch() to carry out. */
static __always_inline int packet_moves(struct scratch *scratch, __u32 ifindex)
{
	scratch->packet.ifindex = ifindex;
	return PACKET_MOVES;
}

/* Handles scratch->packet, whose ifindex is that of the device to come by. Returns the verdict. */
__noinline int packet_move_scratch(packet_context *context)
{
	struct ethhdr ethernet = { .h_source = MOVED_FROM, .h_proto = context->protocol };
	struct scratch *scratch = scratch_find();
	struct packet packet = { .context = context };
	struct device *now = device_of_packet(context, bpf_jiffies64());
	struct device by = {};
	__u32 ifindex;

	if (!scratch || !now)
		return PACKET_DROP;
	ifindex = scratch->packet.ifindex;
	if (!device_read(ifindex, &by)) {
		count(drop_no_route);
		return PACKET_DROP;
	}
	if (by.flags & DEVICE_NO_ETHERNET)
		return bpf_redirect(ifindex, BPF_F_INGRESS);
	__builtin_memcpy(ethernet.h_dest, by.master ? by.master_mac : by.mac, sizeof(ethernet.h_dest));
	if (!packet_make_ethernet(&packet, now) || bpf_skb_store_bytes(context, 0, &ethernet, sizeof(ethernet), 0)) {
		count(drop_rewrite_failed);
		return PACKET_DROP;
	}
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

#endif
