/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A pod's answers to this host itself. The flow is of the node edge, so one pod could answer for another. */
#ifndef WEIR_POD_HOST_H
#define WEIR_POD_HOST_H

#include "device.h"
#include "host_answer.h"
#include "icmp_quote.h"
#include "move.h"
#include "route.h"

/* Whether a route leads by this device to whoever the packet says it is from. */
static __always_inline bool host_believes(const struct packet *packet, const struct device *device)
{
	__u32 ifindex = device_logical(device, packet_ifindex(packet->context));
	enum route_result result;
	struct route route;
	struct tuple back;

	tuple_reverse(&back, &packet->key.tuple);
	result = route_find_out(packet, &back, ifindex, &route);
	return (result == ROUTE_OUT || result == ROUTE_NO_NEIGHBOUR) && route.fib.ifindex == ifindex;
}

/* Handles scratch->packet, to a port of the SNAT range. Returns the verdict; PACKET_BEGINS: it is no such answer. */
__noinline int host_answer_scratch(packet_context *context)
{
	struct flow_view view = {};
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);

	if (!scratch)
		return PACKET_DROP;
	packet.key.edge = EDGE_ID_NODE;
	if (!host_awaits(&packet.key, &view))
		return PACKET_BEGINS;
	if (!host_believes(&packet, device)) {
		count(drop_snat_orphan);
		return PACKET_DROP;
	}
	return packet_moves(scratch, view.ifindex);
}

/*
 * What else a pod's ICMP may be: an error about what this host has sent it. It goes on where answers do. Of any other
 * connection of this host a pod may say so, too.
 */
static __always_inline int pod_error_to_host(struct scratch *scratch, const struct packet *quote)
{
	struct flow_view view = {};
	struct flow_key key;

	flow_other_key(&key, &quote->key, &quote->key.tuple);
	key.edge = EDGE_ID_NODE;
	if (!snat_port_in_range(key.tuple.destination_port) || !host_awaits(&key, &view))
		return PACKET_PASS;
	return packet_moves(scratch, view.ifindex);
}

#endif
