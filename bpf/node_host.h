/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Answers to this host itself, where they arrive at the node edge. At tc alone: XDP passes them up. */
#ifndef WEIR_NODE_HOST_H
#define WEIR_NODE_HOST_H

#include "device.h"
#include "host_answer.h"
#include "nat.h"

/* Whether the packet has come by the device that the question left by, or by another port of the same bridge. */
static __always_inline bool host_asked_by(const struct packet *packet, __u32 ifindex)
{
	struct device device = {};

	if (packet_ifindex(packet->context) == ifindex)
		return true;
	return device_read(ifindex, &device) && device_logical(&device, ifindex) == packet->ifindex;
}

/* Handles scratch->packet. Returns the verdict. */
__noinline int host_answer_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct flow_view view = {};
	struct packet packet = {};
	struct device *device;

	if (!scratch)
		return PACKET_DROP;
	scratch_load(&packet, context, scratch);
	device = device_of_packet(context, packet.now);
	if (!device)
		return PACKET_DROP;
	if (!host_awaits(&packet.key, &view))
		return PACKET_PASS; /* somebody else says that he is this host: the stack knows better */
	if (!host_asked_by(&packet, view.ifindex))
		return packet_arrive_by(&packet, device, view.ifindex);
	flow_account(&packet, &view);
	if (nat_rewrite(&packet, &view.to, false))
		return PACKET_PASS;
	count(drop_rewrite_failed);
	return PACKET_DROP;
}

#endif
