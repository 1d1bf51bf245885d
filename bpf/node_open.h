/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What arrives at the node edge and is of no established flow: an embryo moves on, a packet to a frontend opens
 * a flow. In a global function: the verifier checks it once, by itself.
 */
#ifndef WEIR_NODE_OPEN_H
#define WEIR_NODE_OPEN_H

#include "access_packet.h"
#include "cluster_ip_packet.h"
#include "foreign.h"
#include "leave.h"
#include "masquerade.h"
#include "node_translate.h"
#include "service.h"
#include "side.h"
#include "snat.h"
#include "try.h"

/*
 * A packet that no frontend is for. Into the SNAT range and of no flow, it may be an answer whose flow is
 * gone: the host's reset would end a connection that is not the host's.
 */
static __always_inline int node_unclaimed(struct packet *packet, struct device *device)
{
	const struct tuple *tuple = &packet->key.tuple;

	if (!snat_port_in_range(tuple->destination_port) || packet_is_syn(packet) ||
	    !address_is_of_node(&tuple->destination))
		return packet_unclaimed(packet, device);
	if (socket_takes(packet->context, tuple, packet->key.protocol))
		return PACKET_PASS;
	count(drop_snat_orphan);
	return PACKET_DROP;
}

/* Whether what the stack sends out of the device goes to this node's pods. */
static __always_inline bool device_leads_to_pods(const struct device *device)
{
	return device->edge == EDGE_POD || device->flags & DEVICE_TO_PODS;
}

/* The route to a backend. What is cut on the way goes by the same as what is short enough. */
static __always_inline enum route_result node_route_to(struct packet *packet, const struct tuple *to,
						       struct route *route)
{
	enum route_result result = route_find(packet, to, route);
	__u32 length = packet->length;

	if (result != ROUTE_TOO_BIG || !packet_may_be_cut(packet))
		return result;
	packet->length = route->fib.mtu_result;
	result = route_find(packet, to, route);
	packet->length = length;
	return result;
}

/* Whether the client of scratch->packet may be on a backend's own node. A function of its own, for its stack. */
__noinline int tunnel_is_exempt(void)
{
	struct prefix_key client = { .prefix_length = ADDRESS_PREFIX_MAX };
	struct scratch *scratch = scratch_find();

	if (!scratch)
		return 1;
	client.address = scratch->packet.key.tuple.source;
	return bpf_map_lookup_elem(&tunnel_exempt, &client) != NULL;
}

/* Whether a flow goes to its backend's node in a tunnel. Not a second try: what is wrong may be with the tunnel. */
static __always_inline bool node_tunnels(const struct backend *backend, const struct birth *birth)
{
	return backend->flags & BACKEND_TUNNEL && !birth->retry && !tunnel_is_exempt();
}

/*
 * How a flow reaches its backend: through the stack, which keeps the client's address; where it is on another node,
 * in a tunnel, which keeps it too; or from this node's address, so that answers come back through here. False: not at
 * all.
 */
static __always_inline bool node_plan(struct packet *packet, struct device *device, const struct backend *backend,
				      struct birth *birth, struct flow_view *view)
{
	const struct address *source = device_address(&birth->out, packet->ipv6);
	bool known, tunnels = node_tunnels(backend, birth);
	enum route_result result;
	struct route route;

	if (backend->flags & BACKEND_LOCAL)
		return true;
	result = node_route_to(packet, &birth->to, &route);
	known = device_read(route.fib.ifindex, &birth->out);
	if (result == ROUTE_STACK || (known && device_leads_to_pods(&birth->out)))
		return true;
	if (!tunnels && packet_is_midstream(packet))
		return flow_end(view, reset(packet)); /* its source port toward the backend is lost */
	if (packet->ttl <= 1)
		return flow_end(view, reply_time_exceeded(packet, device)); /* it opens nothing */
	if (policy_concerns(packet, &birth->to))
		return true;
	if (!packet_can_send(packet, result, &route)) {
		if (tunnels) /* the outer header needs room, too */
			route.fib.mtu_result -= ip_header_length(packet->ipv6);
		return flow_end(view, node_refuse(packet, device, result, &route));
	}
	if (!known || address_is_zero(source)) {
		count(drop_snat_no_address);
		return flow_end(view, PACKET_DROP);
	}
	birth->to.source = *source;
	birth->snat = !tunnels;
	birth->action = FLOW_FORWARD;
	if (tunnels) {
		birth->action = FLOW_TUNNEL;
		birth->to.source_port = 0; /* so that its other half is nobody's */
	}
	return true;
}

static __always_inline int node_no_backend(struct packet *packet, struct device *device,
					   const struct service *service)
{
	if (service->flags & SERVICE_NO_ENDPOINTS)
		return reject(packet, device);
	count(drop_no_local_endpoint);
	return PACKET_DROP;
}

/*
 * A packet to a frontend, of no flow yet, or of one whose backend, `tried`, is silent. One in the middle of a
 * connection goes to who must have it, if that can be told.
 */
static __always_inline bool node_open(struct packet *packet, struct device *device, const struct service *service,
				      __u32 tried, struct flow_view *view)
{
	enum side side = packet_side(packet, device);
	__u32 index = service_pick(packet, service, side, tried);
	struct backend *backend;
	struct birth *birth;

	if (!index)
		return flow_end(view, node_no_backend(packet, device, service));
	backend = backend_find(index);
	if (!backend) {
		count(drop_stale_backend);
		return flow_end(view, PACKET_DROP);
	}
	if (index == tried && !(backend->flags & BACKEND_TUNNEL))
		return flow_again(packet, view) ||
		       flow_end(view, PACKET_DROP); /* there is no other, nor another way */
	if (packet_is_midstream(packet) && !service_picks_by_table(service, side))
		return flow_end(view, reset(packet));
	birth = flow_prepare(packet, service, index, backend, tried);
	if (!birth)
		return flow_end(view, PACKET_DROP);
	return node_plan(packet, device, backend, birth, view) && flow_end(view, PACKET_OPENS);
}

/* A packet of no flow, or of one whose backend, `tried`, is silent: whether `view` is of a flow now. */
static __always_inline bool node_new(struct packet *packet, struct device *device, __u32 tried,
				     struct flow_view *view)
{
	struct service_view service;

	switch (service_of_packet(packet, &service)) {
	case SERVICE_NONE:
		return flow_end(view, node_unclaimed(packet, device));
	case SERVICE_STALE:
		count(drop_stale_service);
		return flow_end(view, PACKET_DROP);
	case SERVICE_FOUND:
		break;
	}
	if (!tuple_is_of_hosts(&packet->key.tuple) || fragment_is_stray(packet))
		return flow_end(view, PACKET_PASS);
	if (packet_is_foreign(packet, view))
		return false;
	/* The node's own connections have NodePorts too: only a SYN is certainly for the service. */
	if (packet_is_midstream(packet) && (service.node_port || !connections_are_known())) {
		count_left(pass_without_flow);
		return flow_end(view, PACKET_PASS);
	}
	if (!packet_is_admitted(packet, &service))
		return flow_end(view, PACKET_DROP);
	return node_open(packet, device, service.service, tried, view);
}

/*
 * Handles scratch->packet, which is of no established flow, if it is of an embryo. Returns the verdict;
 * PACKET_BEGINS: it is not, or is a SYN that scratch->tried has left without an answer.
 */
__noinline int node_embryo_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};

	if (!scratch)
		return PACKET_PASS;
	if (!packet_masquerade(&packet))
		return packet_pass_up();
	switch (flow_lookup_begun(&packet, &view)) {
	case FLOW_REFUSED:
		return PACKET_DROP;
	case FLOW_MISS:
		scratch->tried = 0;
		return PACKET_BEGINS;
	case FLOW_RETRY:
		if (flow_is_of_host(&view))
			return PACKET_OF_HOST;
		try_fails(scratch, view.flow);
		return PACKET_BEGINS;
	case FLOW_HIT:
		break;
	}
	if (answer_is_lost(&view, FLOW_FORWARD))
		return refuse_lost(&packet);
	return flow_leave(scratch, &view);
}

/*
 * Looks for a backend for scratch->packet, or for another one than scratch->tried. Returns the verdict, or
 * PACKET_OPENS: scratch->birth is the flow.
 */
__noinline int node_new_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};

	if (!scratch)
		return PACKET_PASS;
	if (!node_new(&packet, device, scratch->tried, &view))
		return view.verdict;
	return flow_leave(scratch, &view);
}

#endif
