/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What this host itself sends to a VIP, and nobody has translated yet: packets of raw sockets, of sockets that were
 * connected before the agent came, of the kernel's own clients, and of all processes with --socket-lb off. Where they
 * leave is the last place to do it, and what leaves there with a VIP is lost.
 *
 * A backend sees the node's address on the way to it, with a port of the SNAT range: its answers are known by that,
 * on whatever device they come (host_answer.h).
 */
#ifndef WEIR_HOST_H
#define WEIR_HOST_H

#include "access_packet.h"
#include "cluster_ip.h"
#include "device.h"
#include "embryo.h"
#include "host_packet.h"
#include "leave.h"
#include "move.h"
#include "nat.h"
#include "reject.h"
#include "policy.h"
#include "route.h"
#include "service.h"
#include "snat.h"

/* enum cluster_ip_use of an address that only Services can have, else 0. Global: verified once. */
__noinline int vip_use(__u64 high, __u64 low)
{
	struct address address;
	__u32 use;

	address_set_halves(&address, high, low);
	use = cluster_ip_find(&address);
	return use == CLUSTER_IP_LEFT ? 0 : use;
}

static __always_inline int packet_vip_use(const struct packet *packet)
{
	const struct address *destination = &packet->key.tuple.destination;

	return vip_use(address_high(destination), address_low(destination));
}

/* Whether this host sends the packet to such an address. One that it forwards has come by a device. */
static __always_inline bool host_strays(const struct packet *packet)
{
	return !packet->context->ingress_ifindex && packet_vip_use(packet);
}

/* Whether this host sends the packet to a frontend, or to an address that is for frontends alone. */
static __always_inline bool host_asks_vip(const struct packet *packet)
{
	const struct tuple *tuple = &packet->key.tuple;
	struct frontend_key key;

	if (packet->context->ingress_ifindex)
		return false;
	frontend_key_fill(&key, &tuple->destination, tuple->destination_port, packet->key.protocol);
	return bpf_map_lookup_elem(&frontends, &key) || host_strays(packet);
}

static __always_inline int host_drop(void)
{
	count(drop_host_untranslated);
	return PACKET_DROP;
}

/* A fragment that is not to be translated. */
static __always_inline int host_leave_fragment(const struct packet *packet)
{
	return host_strays(packet) ? host_drop() : fragment_leave();
}

/* What a route says that leads to no backend. */
static __always_inline int host_refuse(struct packet *packet, struct device *device, enum route_result result,
				       const struct route *route)
{
	if (result == ROUTE_TOO_BIG)
		return reply_too_big(packet, device, route->fib.mtu_result);
	count(drop_no_route);
	return PACKET_DROP;
}

/*
 * A server on this host would answer an address of the node by lo, past us. So it sees the VIP as its client, and
 * answers where the question would have left.
 */
static __always_inline bool host_serves_itself(const struct backend *backend, enum route_result result)
{
	return result == ROUTE_STACK && (backend->flags & BACKEND_LOCAL || address_is_of_node(&backend->address));
}

/* How a flow of this host reaches its backend. False: not at all. */
static __always_inline bool host_plan(struct packet *packet, struct device *device, const struct backend *backend,
				      struct birth *birth, struct flow_view *view)
{
	const struct address *source = device_address(&birth->out, packet->ipv6);
	enum route_result result;
	struct route route;

	birth->action = FLOW_HOST;
	birth->snat = true;
	result = route_find_of_host(packet, &birth->to, &route);
	if (host_serves_itself(backend, result)) {
		birth->to.source = packet->key.tuple.destination;
		return true;
	}
	if (!packet_can_send(packet, result, &route))
		return flow_end(view, host_refuse(packet, device, result, &route));
	if (!device_read(route.fib.ifindex, &birth->out) || address_is_zero(source)) {
		count(drop_snat_no_address);
		return flow_end(view, PACKET_DROP);
	}
	birth->to.source = *source;
	return true;
}

static __always_inline int host_no_backend(struct packet *packet, struct device *device,
					   const struct service *service)
{
	if (packet->fragment)
		return host_leave_fragment(packet);
	if (service->flags & SERVICE_NO_ENDPOINTS)
		return reject(packet, device);
	count(drop_no_local_endpoint);
	return PACKET_DROP;
}

static __always_inline bool host_open(struct packet *packet, struct device *device, const struct service *service,
				      struct flow_view *view)
{
	__u32 index = service_pick(packet, service, SIDE_INSIDE, 0);
	struct backend *backend;
	struct birth *birth;

	if (!index)
		return flow_end(view, host_no_backend(packet, device, service));
	backend = backend_find(index);
	if (!backend) {
		count(drop_stale_backend);
		return flow_end(view, PACKET_DROP);
	}
	birth = flow_prepare(packet, service, index, backend, 0);
	if (!birth)
		return flow_end(view, PACKET_DROP);
	return host_plan(packet, device, backend, birth, view) && flow_end(view, PACKET_OPENS);
}

/* A connection that was there before us, or is forgotten: nobody can go on with it, so its socket is told. */
static __always_inline int host_reset(struct packet *packet)
{
	return packet->tcp_flags & TCP_RST ? host_drop() : reset(packet);
}

/* A packet to an address of Services that has no such port, or that no Service has (C05). */
static __always_inline int host_unclaimed(struct packet *packet, struct device *device)
{
	int use = packet_vip_use(packet);

	if (packet->fragment)
		return host_leave_fragment(packet);
	if (use == CLUSTER_IP_UNALLOCATED) {
		count(drop_unallocated);
		return PACKET_DROP;
	}
	if (use != CLUSTER_IP_ALLOCATED || packet->tcp_flags & TCP_RST)
		return host_drop();
	return reject(packet, device);
}

/* A packet of no flow: whether one has been opened for it. */
static __always_inline bool host_new(struct packet *packet, struct device *device, struct flow_view *view)
{
	struct service_view service = {};

	if (packet->tagged || !tuple_is_of_hosts(&packet->key.tuple))
		return flow_end(view, host_drop());
	if (packet->fragment == FRAGMENT_LATER)
		return flow_end(view, host_leave_fragment(packet));
	switch (service_of_packet(packet, &service)) {
	case SERVICE_NONE:
		return flow_end(view, host_unclaimed(packet, device));
	case SERVICE_STALE:
		count(drop_stale_service);
		return flow_end(view, PACKET_DROP);
	case SERVICE_FOUND:
		break;
	}
	if (packet_is_midstream(packet))
		return flow_end(view, host_reset(packet));
	if (!packet_is_admitted(packet, &service))
		return flow_end(view, PACKET_DROP);
	return host_open(packet, device, service.service, view);
}

/* A packet of a known flow of this host, to its backend. */
static __always_inline int host_forward(struct scratch *scratch, struct packet *packet, struct device *device,
					struct flow_view *view)
{
	bool here = address_equal(&view->to.source, &packet->key.tuple.destination); /* host_serves_itself() */
	enum route_result result = ROUTE_OUT;
	struct route route;

	if (flow_has_ended(packet, view))
		return reset(packet);
	if (!here) {
		if (policy_concerns(packet, &view->to)) {
			count(drop_policy);
			return PACKET_DROP;
		}
		result = route_find_of_host(packet, &view->to, &route);
		if (!packet_can_send(packet, result, &route))
			return host_refuse(packet, device, result, &route);
	}
	flow_account(packet, view);
	if (!nat_rewrite(packet, &view->to, false)) {
		count(drop_rewrite_failed);
		return PACKET_DROP;
	}
	if (here)
		return packet_moves(scratch, packet_ifindex(packet->context));
	return packet_send_instead(packet, device, result, &route);
}

/*
 * Looks for the flow of scratch->packet, which leaves and is between this host and a VIP. Returns the verdict,
 * PACKET_OPENS or PACKET_TRANSLATES.
 */
__noinline int host_find_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};
	enum flow_result found;

	if (!scratch)
		return PACKET_DROP;
	/* Not a bridge or bond whose port it is: this is where a server of the host has its answers from. */
	packet.ifindex = packet_ifindex(context);
	scratch->packet.ifindex = packet.ifindex;
	found = flow_lookup(&packet, &view) ? FLOW_HIT : flow_lookup_embryo(&packet, &view);
	if (found == FLOW_REFUSED)
		return PACKET_DROP;
	if (found == FLOW_MISS && !host_new(&packet, device, &view))
		return view.verdict;
	return flow_leave(scratch, &view);
}

/* Handles scratch->packet, of the flow scratch->view. Returns the verdict. */
__noinline int host_translate_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};

	if (!scratch)
		return PACKET_DROP;
	flow_resume(scratch, &view);
	if (view.half == FLOW_HALF_REVERSE) /* of a server on this host */
		return packet_moves(scratch, view.ifindex);
	return host_forward(scratch, &packet, device, &view);
}

/* Handles scratch->packet, which leaves and is between this host and a VIP. Returns the verdict. */
static __always_inline int host_send(packet_context *context)
{
	int verdict = host_find_scratch(context);

	if (verdict == PACKET_OPENS)
		verdict = flow_begin_scratch(context);
	return verdict == PACKET_TRANSLATES ? host_translate_scratch(context) : verdict;
}

#endif
