/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the node edge does with a packet whose flow is known, or has just been opened. */
#ifndef WEIR_NODE_TRANSLATE_H
#define WEIR_NODE_TRANSLATE_H

#include "back.h"
#include "device.h"
#include "flow.h"
#include "host_packet.h"
#include "leave.h"
#include "nat.h"
#include "policy.h"
#include "route.h"

static __always_inline int node_drop(void)
{
	count(drop_rewrite_failed);
	return PACKET_DROP;
}

/* Whether a packet that is too long for its way may be cut (cut.h). XDP leaves that to tc. */
static __always_inline bool packet_may_be_cut(const struct packet *packet)
{
	struct iphdr *ip;

	if (PACKET_IS_XDP || packet->ipv6 || packet->length > CUT_BYTES_MAX || packet_is_gso(packet->context))
		return false;
	ip = packet_at(packet, packet->ip_offset, sizeof(*ip));
	return ip && ip->ihl == sizeof(*ip) / 4 && !(ip->frag_off & bpf_htons(IPV4_DONT_FRAGMENT));
}

/* Leaves a packet of a flow to cut_scratch(). */
static __always_inline int node_cuts(const struct packet *packet, const struct flow_view *view, __u32 mtu)
{
	struct scratch *scratch = scratch_save(packet);

	if (!scratch)
		return PACKET_DROP;
	flow_account(packet, view);
	scratch->cut.mtu = mtu;
	return PACKET_CUTS;
}

/* What a route says that does not lead out, or not by this hook. */
static __always_inline int node_refuse(struct packet *packet, struct device *device, enum route_result result,
				       const struct route *route)
{
	if (result == ROUTE_TOO_BIG)
		return reply_too_big(packet, device, route->fib.mtu_result);
	if (result == ROUTE_DROP) {
		count(drop_no_route);
		return PACKET_DROP;
	}
	return packet_pass_up();
}

/* A packet of a flow that cannot be sent as it is. */
static __always_inline int node_cut_or_refuse(struct packet *packet, struct device *device,
					      const struct flow_view *view, enum route_result result,
					      const struct route *route)
{
	if (result == ROUTE_TOO_BIG && packet_may_be_cut(packet))
		return node_cuts(packet, view, route->fib.mtu_result);
	return node_refuse(packet, device, result, route);
}

/* The route of a packet that leaves again. */
static __always_inline enum route_result node_route(struct packet *packet, struct flow_view *view,
						    struct route *route)
{
	__u32 by = view->half == FLOW_HALF_FORWARD ? 0 : view->ifindex;

	return route_find_back(packet, &view->to, by, route);
}

/*
 * Whether the flow's last packet came so lately that a next hop may be remembered since. That stands in a cache line
 * of its own, which flows of few packets need not touch.
 */
static __always_inline bool flow_is_busy(const struct flow *flow, __u32 now)
{
	return now - flow->last_seen < BELIEVE_JIFFIES;
}

/* A packet that leaves again, by a route. Its flow remembers that for those that follow, if it can. */
static __always_inline int node_forward_routed(struct packet *packet, struct device *device, struct flow_view *view)
{
	enum route_result result;
	struct route route;
	bool has_hop;

	if (policy_concerns(packet, &view->to))
		return policy_ends_flow(packet, view);
	result = node_route(packet, view, &route);
	if (!packet_can_send(packet, result, &route))
		return node_cut_or_refuse(packet, device, view, result, &route);
	has_hop = packet_has_hop(device, result, &route);
	if (has_hop && view->flow && flow_is_busy(view->flow, packet->now))
		hop_remember(&view->flow->hop, &route, packet->now);
	flow_account(packet, view);
	if (!nat_rewrite(packet, &view->to, true))
		return node_drop();
	if (has_hop && !packet_write_macs(packet, route.fib.dmac, route.fib.smac))
		return node_drop();
	return packet_send(packet, device, &route);
}

/* One that leaves by the next hop that its flow remembers. */
static __always_inline int node_forward_hop(struct packet *packet, struct flow_view *view, const struct hop *hop)
{
	flow_account(packet, view);
	return nat_rewrite(packet, &view->to, true) ? packet_send_hop(packet, hop) : node_drop();
}

/* Whether that does for a packet. */
static __always_inline bool node_has_hop(const struct packet *packet, const struct device *device,
					 const struct flow_view *view)
{
	if (!view->flow || packet->tagged || packet->scattered || device->flags & DEVICE_NO_ETHERNET)
		return false;
	return flow_is_busy(view->flow, packet->now) && packet_can_send_hop(&view->flow->hop) &&
	       hop_is_good(&view->flow->hop, packet, 0);
}

/*
 * A packet that leaves again. `leaves`: at tc one that needs a route is left to node_translate_scratch(), so that the
 * verifier goes through that only there.
 */
static __always_inline int node_forward(struct packet *packet, struct device *device, struct flow_view *view,
					bool leaves)
{
	struct scratch *scratch;

	if (packet->ttl <= 1)
		return reply_time_exceeded(packet, device);
	if ((PACKET_IS_XDP || leaves) && node_has_hop(packet, device, view))
		return node_forward_hop(packet, view, &view->flow->hop);
	if (PACKET_IS_XDP || !leaves)
		return node_forward_routed(packet, device, view);
	scratch = scratch_save(packet);
	return scratch ? flow_leave(scratch, view) : PACKET_DROP;
}

/* Whether the next hop that the flow remembers does for a packet, with no more to look at. */
static __always_inline bool tunnel_is_ready(const struct packet *packet, const struct flow_view *view)
{
	return PACKET_IS_XDP && view->flow && packet->ttl > 1 && !packet->tagged && !packet->scattered &&
	       hop_is_good(&view->flow->hop, packet, ip_header_length(packet->ipv6));
}

/* Leaves a packet to tunnel_send_scratch(). */
static __noinline int node_tunnel(const struct packet *packet, const struct flow_view *view)
{
	struct scratch *scratch = scratch_save(packet);

	if (!scratch)
		return PACKET_DROP;
	scratch->tunnel.to = view->to;
	scratch->tunnel.ready = tunnel_is_ready(packet, view);
	if (scratch->tunnel.ready) {
		scratch->tunnel.hop = view->flow->hop;
		flow_account(packet, view);
	}
	return PACKET_TUNNELS;
}

/* A packet of a known flow. */
static __always_inline int node_translate(struct packet *packet, struct device *device, struct flow_view *view,
					  bool leaves)
{
	if (flow_has_ended(packet, view))
		return reset(packet);
	if (view->action == FLOW_FORWARD)
		return node_forward(packet, device, view, leaves);
	if (view->action == FLOW_STACK && view->half == FLOW_HALF_REVERSE)
		return PACKET_PASS; /* answers of local backends are turned back where they leave */
	if (view->action == FLOW_TUNNEL)
		return node_tunnel(packet, view);
	if (view->action == FLOW_HOST)
		return packet_of_host(packet);
	flow_account(packet, view);
	if (view->action == FLOW_FOREIGN) {
		count_left(pass_foreign);
		return PACKET_PASS;
	}
	return nat_rewrite(packet, &view->to, false) ? PACKET_PASS : node_drop();
}

/*
 * Marks what begins a flow to a backend elsewhere, where a policy may concern it: the stack is to give it the node's
 * address. False: this hook has no marks.
 */
static __noinline bool policy_mark_packet(const struct packet *packet, const struct flow_view *view)
{
	struct scratch *scratch = scratch_find();
	struct backend *backend;
	__u32 index;

	if (view->action != FLOW_STACK || view->half != FLOW_HALF_FORWARD || !scratch ||
	    !policy_concerns(packet, &view->to))
		return true;
	index = view->flow ? view->flow->backend : scratch->birth.backend;
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!backend || backend->flags & BACKEND_LOCAL)
		return true;
	return packet_set_mark(packet->context, policy_mark);
}

/* Handles scratch->packet, of the flow scratch->view. Its own function: it is verified once, and so is its stack. */
__noinline int node_translate_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};

	if (!scratch)
		return PACKET_PASS;
	flow_resume(scratch, &view);
	if (!policy_mark_packet(&packet, &view))
		return packet_pass_up();
	return node_translate(&packet, device, &view, false);
}

#endif
