/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP that arrives at the node edge: errors about packets of flows go on to the client, or to the backend. */
#ifndef WEIR_NODE_ICMP_H
#define WEIR_NODE_ICMP_H

#include "icmp_echo.h"
#include "icmp_quote.h"
#include "move.h"
#include "node_translate.h"

/* Whether an error leaves again, as packets of its half do, and by which route. */
static __always_inline bool node_error_leaves(struct packet *packet, struct flow_view *view, struct route *route)
{
	enum route_result result;

	if (packet->tagged)
		return flow_end(view, PACKET_PASS);
	result = node_route(packet, view, route);
	if (result == ROUTE_STACK)
		return flow_end(view, PACKET_PASS);
	if (packet->ttl <= 1 || !packet_can_send(packet, result, route))
		return flow_end(view, quote_drop_undeliverable());
	return true;
}

/* Whether an error is about what this host has sent to a VIP. It goes the way of answers (node_host.h). */
static __always_inline bool node_error_is_for_host(struct scratch *scratch, struct packet *packet,
						   struct flow_view *view)
{
	if (view->half == FLOW_HALF_FORWARD)
		return flow_end(view, PACKET_PASS);
	if (packet_ifindex(packet->context) != view->ifindex)
		return flow_end(view, packet_moves(scratch, view->ifindex));
	return true;
}

/* Whether an error about a packet of a flow is translated here, and the route by which it leaves, if it does. */
static __always_inline bool node_error_is_translated(struct scratch *scratch, struct packet *packet,
						     struct flow_view *view, struct route *route)
{
	if (view->action == FLOW_TUNNEL)
		return flow_end(view, node_tunnel(packet, view)); /* there it is */
	if (view->action == FLOW_FORWARD)
		return node_error_leaves(packet, view, route);
	if (flow_is_of_host(view))
		return node_error_is_for_host(scratch, packet, view);
	/* As answers of local backends, it is turned back where it leaves. */
	return view->half == FLOW_HALF_FORWARD || flow_end(view, PACKET_PASS);
}

/* Handles scratch->packet, which is ICMP. Returns the verdict. */
__noinline int node_icmp_scratch(packet_context *context)
{
	struct packet packet = {}, quote = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	enum quote_result kind;
	struct flow_view *view;
	struct route route = {};
	bool forward;

	if (!scratch || !packet_is_for(&packet, device))
		return PACKET_PASS;
	view = &scratch->quoted.half;
	kind = quote_resume(&quote, context, scratch);
	if (kind == QUOTE_NONE && echo_is_asked(&packet, VIP_ANSWERS_OUTSIDE))
		return echo_answer(&packet, scratch, device);
	if (kind == QUOTE_NONE)
		return PACKET_PASS;
	if (quote_ends(kind))
		return PACKET_DROP;
	if (!node_error_is_translated(scratch, &packet, view, &route))
		return view->verdict;
	forward = view->action == FLOW_FORWARD;
	if (!quote_translate(&packet, &quote, view, forward))
		return PACKET_DROP;
	return forward ? packet_send(&packet, device, &route) : PACKET_PASS;
}

#endif
