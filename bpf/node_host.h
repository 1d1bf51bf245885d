/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Answers to this host itself, where they arrive at the node edge. At tc alone: XDP passes them up. */
#ifndef WEIR_NODE_HOST_H
#define WEIR_NODE_HOST_H

#include "host_answer.h"
#include "move.h"
#include "nat.h"
#include "try.h"

/* Handles scratch->packet. Returns the verdict. */
__noinline int host_answer_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct flow_view view = {};
	struct packet packet = {};

	if (!scratch)
		return PACKET_DROP;
	scratch_load(&packet, context, scratch);
	if (!host_awaits(&packet.key, &view))
		return PACKET_PASS; /* somebody else says that he is this host: the stack knows better */
	if (packet_ifindex(context) != view.ifindex)
		return packet_moves(scratch, view.ifindex);
	if (embryo_turn(view.flow, FLOW_ANSWERED) && !(packet.tcp_flags & TCP_RST))
		backend_answered(view.flow->backend, view.flow->generation);
	flow_account(&packet, &view);
	if (nat_rewrite(&packet, &view.to, false))
		return PACKET_PASS;
	count(drop_rewrite_failed);
	return PACKET_DROP;
}

#endif
