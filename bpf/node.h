/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What arrives at the node edge. The same at XDP and at tc: XDP finishes what it can, and passes up
 * unchanged what it cannot, for tc to find in the same way.
 */
#ifndef WEIR_NODE_H
#define WEIR_NODE_H

#include "leave.h"
#include "node_open.h"

/* A packet of an established flow, whole; of any other, who goes on with it. */
__noinline int node_known(packet_context *context)
{
	struct packet packet = { .context = context, .key.edge = EDGE_ID_NODE, .now = bpf_jiffies64() };
	struct device *device = device_of_packet(context, packet.now);
	enum parse_result parsed;
	struct flow_view view;

	if (!device)
		return PACKET_PASS;
	parsed = packet_parse(&packet, !(device->flags & DEVICE_NO_ETHERNET));
	packet.ifindex = packet.tagged ? 0 : device_logical(device, packet_ifindex(context));
	if (parsed == PARSE_TUNNEL)
		return packet_leave_to_tc(&packet, PACKET_TUNNEL);
	if (parsed != PARSE_OK)
		return packet_leave(&packet, parsed);
	if (!packet_is_for(&packet, device)) {
		count_left(pass_not_for_us);
		return PACKET_PASS;
	}
	if (flow_lookup(&packet, &view))
		return node_translate(&packet, device, &view, true);
	return scratch_save(&packet) ? PACKET_BEGINS : PACKET_DROP;
}

/* Functions, one after the other: the stack of the one is not the other's. */
static __always_inline int node_arrive(packet_context *context)
{
	int verdict = node_known(context);

	if (verdict < PACKET_BEGINS) /* one comparison for most packets, where there would be one for each number */
		return verdict;
	if (verdict == PACKET_AGAIN)
		verdict = node_known(context);
	if (verdict == PACKET_FRAGMENT)
		verdict = fragment_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = node_embryo_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = node_new_scratch(context);
	if (verdict == PACKET_OPENS)
		verdict = flow_begin_scratch(context);
	if (verdict == PACKET_TRANSLATES)
		verdict = node_translate_scratch(context);
	return verdict == PACKET_OF_HOST ? host_answer_scratch(context) : verdict;
}

#endif
