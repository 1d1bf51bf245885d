/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP that arrives at the node edge: errors about packets of flows go on to the client, or to the backend. */
#ifndef WEIR_NODE_ICMP_H
#define WEIR_NODE_ICMP_H

#include "icmp_echo.h"
#include "icmp_quote.h"
#include "move.h"
#include "node_translate.h"

/* An error that leaves again, as packets of its half do. */
static __always_inline int node_forward_error(struct packet *packet, struct packet *quote, struct device *device,
					      struct flow_view *view)
{
	enum route_result result;
	struct route route;

	if (packet->tagged)
		return PACKET_PASS;
	result = node_route(packet, view, &route);
	if (result == ROUTE_STACK)
		return PACKET_PASS;
	if (packet->ttl <= 1 || !packet_can_send(packet, result, &route))
		return quote_drop_undeliverable();
	if (!quote_translate(packet, quote, view, true))
		return PACKET_DROP;
	return packet_send(packet, device, &route);
}

/* An error about what this host has sent to a VIP. It goes the way of answers (node_host.h). */
static __always_inline int node_error_to_host(struct scratch *scratch, struct packet *packet, struct packet *quote,
					      const struct flow_view *view)
{
	if (view->half == FLOW_HALF_FORWARD)
		return PACKET_PASS;
	if (packet_ifindex(packet->context) != view->ifindex)
		return packet_moves(scratch, view->ifindex);
	return quote_translate(packet, quote, view, false) ? PACKET_PASS : PACKET_DROP;
}

/* Handles scratch->packet, which is ICMP. Returns the verdict. */
__noinline int node_icmp_scratch(packet_context *context)
{
	struct packet packet = {}, quote = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};
	enum quote_result kind;

	if (!scratch || !packet_is_for(&packet, device))
		return PACKET_PASS;
	kind = quote_find(scratch, &packet, &quote, &view);
	if (kind == QUOTE_NONE && echo_is_asked(&packet, VIP_ANSWERS_OUTSIDE))
		return echo_answer(&packet, scratch, device);
	if (kind == QUOTE_NONE)
		return PACKET_PASS;
	if (quote_ends(kind))
		return PACKET_DROP;
	if (view.action == FLOW_FORWARD)
		return node_forward_error(&packet, &quote, device, &view);
	if (flow_is_of_host(&view))
		return node_error_to_host(scratch, &packet, &quote, &view);
	if (view.half == FLOW_HALF_REVERSE)
		return PACKET_PASS; /* as answers of local backends: turned back where they leave */
	return quote_translate(&packet, &quote, &view, false) ? PACKET_PASS : PACKET_DROP;
}

#endif
