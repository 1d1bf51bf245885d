/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What another node has sent in a tunnel (tunnel.h), to a backend of this node that it has picked. It is unpacked,
 * and goes on as if the client had sent it here; the answer leaves as that of any backend here. At tc alone: the
 * stack delivers it in any case.
 */
#ifndef WEIR_TUNNEL_ARRIVE_H
#define WEIR_TUNNEL_ARRIVE_H

#include "fragment.h"
#include "move.h"
#include "node_open.h"

static __always_inline bool address_has_tunnels(const struct address *address)
{
	return bpf_map_lookup_elem(&tunnel_sources, address) != NULL;
}

/* The backend's port, from the outer header. 0: there are IP options, or no header. */
static __always_inline __u16 tunnel_port(const struct packet *packet)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if (packet->transport_offset - packet->ip_offset != ip_header_length(packet->ipv6))
		return 0;
	if (packet->ipv6) {
		ip6 = packet_at(packet, packet->ip_offset, sizeof(*ip6));
		return ip6 ? bpf_ntohl(*(const __be32 *)ip6) : 0;
	}
	ip = packet_at(packet, packet->ip_offset, sizeof(*ip));
	return ip ? bpf_ntohs(ip->id) : 0;
}

/*
 * The index of the backend scratch->target; 0: it is none of this node. A global function: it is verified once.
 */
__noinline int tunnel_target_find(void)
{
	struct scratch *scratch = scratch_find();
	struct tunnel_target *target;
	struct backend *backend;
	__u32 *found, index;

	if (!scratch)
		return 0;
	target = &scratch->target;
	found = bpf_map_lookup_elem(&tunnel_targets, target);
	if (!found)
		return 0;
	index = *found;
	backend = backend_find(index);
	if (!backend || backend->port != target->port || backend->protocol != target->protocol ||
	    !address_equal(&backend->address, &target->address))
		return 0; /* another backend has the index by now */
	return index;
}

/* The backend that the tunnel leads to. An ICMP error is about a packet of a flow, and does not say of which
 * protocol. */
static __always_inline __u32 tunnel_target(struct scratch *scratch, const struct packet *packet,
					   enum parse_result parsed)
{
	struct tunnel_target *target = &scratch->target;
	__u32 index;

	target->address = packet->key.tuple.destination;
	target->port = tunnel_port(packet);
	target->protocol = parsed == PARSE_ICMP ? IPPROTO_TCP : scratch->inner.key.protocol;
	target->pad = 0;
	index = tunnel_target_find();
	if (index || parsed != PARSE_ICMP)
		return index;
	target->protocol = IPPROTO_UDP;
	index = tunnel_target_find();
	if (index)
		return index;
	target->protocol = IPPROTO_SCTP;
	return tunnel_target_find();
}

/* A fragment in a tunnel. None is waited for: the node that has sent it did that, and has sent the first before. */
static __always_inline enum parse_result tunnel_parse_fragment(struct packet *inner)
{
	struct fragment_key key = {};

	if (!fragment_parse(inner, &key))
		return PARSE_NOT_OURS;
	if (inner->fragment == FRAGMENT_FIRST) {
		if (!fragment_parse_first(inner))
			return PARSE_TRUNCATED;
		datagram_note(&key, inner, DATAGRAM_KNOWN);
		return PARSE_OK;
	}
	return datagram_read(&key, inner) == DATAGRAM_KNOWN ? PARSE_OK : PARSE_FRAGMENT;
}

/* Fills in scratch->inner as what scratch->packet carries, where it is in there. A global function: verified once. */
__noinline int tunnel_parse_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct packet inner = { .context = context, .key.edge = EDGE_ID_NODE };
	enum parse_result result;
	struct cursor cursor;
	__u32 available;

	if (!scratch)
		return PARSE_NOT_OURS;
	packet_make_linear(context);
	cursor = packet_cursor(context);
	cursor.position += scratch->packet.transport_offset & PACKET_OFFSET_MASK;
	inner.ip_offset = scratch->packet.transport_offset;
	inner.now = scratch->packet.now;
	available = scratch->packet.length - ip_header_length(scratch->packet.ipv6);
	result = scratch->packet.ipv6 ? parse_ipv6(&cursor, &inner, available)
				      : parse_ipv4(&cursor, &inner, available);
	if (result == PARSE_OK)
		result = parse_transport(&cursor, &inner);
	if (result == PARSE_FRAGMENT)
		result = tunnel_parse_fragment(&inner);
	packet_copy(&scratch->inner, &inner);
	return result;
}

/* Takes the outer header off scratch->packet, which becomes scratch->inner. */
static __always_inline bool tunnel_unpack(packet_context *context, struct scratch *scratch)
{
	__u32 header = ip_header_length(scratch->packet.ipv6);

	if (bpf_skb_adjust_room(context, -(__s32)header, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return false;
	packet_copy(&scratch->packet, &scratch->inner);
	scratch->packet.ip_offset -= header;
	scratch->packet.transport_offset -= header;
	return true;
}

static __always_inline int tunnel_drop(void)
{
	count(drop_tunnel_unknown);
	return PACKET_DROP;
}

/*
 * Handles scratch->packet, which is IP in IP. Returns the verdict; or, with what it carried in the scratch,
 * PACKET_TUNNEL, and PACKET_ICMP.
 */
__noinline int tunnel_unpack_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	enum parse_result parsed;

	if (!scratch || packet.tagged || !packet_is_for(&packet, device) ||
	    !address_has_tunnels(&packet.key.tuple.source))
		return PACKET_PASS;
	parsed = tunnel_parse_scratch(context);
	scratch->target_index = tunnel_target(scratch, &packet, parsed);
	if (!scratch->target_index)
		return PACKET_PASS; /* somebody else's tunnel */
	if (parsed == PARSE_FRAGMENT)
		return fragment_drop();
	if (parsed != PARSE_OK && parsed != PARSE_ICMP)
		return tunnel_drop();
	scratch->tunnel_source = packet.key.tuple.source;
	if (!tunnel_unpack(context, scratch))
		return node_drop();
	count(tunnel_received);
	return parsed == PARSE_ICMP ? PACKET_ICMP : PACKET_TUNNEL;
}

/* Whether a flow is one to the backend that the tunnel leads to. */
static __always_inline bool tunnel_leads(const struct flow_view *view, const struct scratch *scratch)
{
	return (view->action & ~FLOW_ENDED) == FLOW_STACK && view->half == FLOW_HALF_FORWARD &&
	       view->to.destination_port == bpf_htons(scratch->target.port) &&
	       address_equal(&view->to.destination, &scratch->target.address);
}

/* Translates the packet, and makes it come by the device that the client's packets would have come by. */
static __always_inline int tunnel_deliver(struct packet *packet, struct scratch *scratch, struct flow_view *view)
{
	view->action &= ~FLOW_ENDED; /* the other node tells the client */
	flow_account(packet, view);
	if (!nat_rewrite(packet, &view->to, false))
		return node_drop();
	if (view->ifindex && view->ifindex != packet_ifindex(packet->context))
		return packet_moves(scratch, view->ifindex);
	return PACKET_PASS;
}

/* Handles scratch->packet, which a tunnel has brought. PACKET_BEGINS: it is of no established flow to that backend.
 */
__noinline int tunnel_known_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct packet packet = {};
	struct flow_view view;

	if (!scratch)
		return PACKET_DROP;
	scratch_load(&packet, context, scratch);
	if (!flow_lookup(&packet, &view))
		return PACKET_BEGINS;
	if (tunnel_leads(&view, scratch))
		return tunnel_deliver(&packet, scratch, &view);
	flow_remove(&packet.key, &view.to);
	return PACKET_BEGINS;
}

/*
 * Says of scratch->packet where it would come by, had the client sent it here: the policies of the node, and what it
 * lets by for its source (rp_filter), shall see the same. A pod of this node is at its own edge, where the answer
 * passes: PACKET_TUNNEL, that may know the flow. Dropped is what comes from behind a bridge, or from this host
 * itself, where no program of ours would see the answer.
 */
__noinline int tunnel_place_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device, *out;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	enum route_result result;
	struct route route;

	if (!scratch)
		return PACKET_DROP;
	out = &scratch->birth.out;
	result = route_find_source(&packet, &scratch->target.address, &route);
	if (result == ROUTE_STACK || result == ROUTE_DROP)
		return tunnel_drop();
	if (route.fib.ifindex == device_logical(device, packet_ifindex(context)) ||
	    !device_read(route.fib.ifindex, out))
		return PACKET_BEGINS;
	if (out->edge != EDGE_POD && out->flags & DEVICE_TO_PODS)
		return tunnel_drop();
	scratch->packet.ifindex = route.fib.ifindex;
	if (out->edge != EDGE_POD)
		return PACKET_BEGINS;
	scratch->packet.key.edge = out->edge_id;
	return PACKET_TUNNEL;
}

/* The service that a tunnel's packet is for: a NodePort is an address of the other node. */
static __always_inline enum service_result tunnel_service(const struct packet *packet, struct service_view *service)
{
	const struct tuple *tuple = &packet->key.tuple;
	struct frontend_key key;

	frontend_key_fill(&key, &tuple->destination, tuple->destination_port, packet->key.protocol);
	if (!bpf_map_lookup_elem(&frontends, &key))
		frontend_key_any_address(&key);
	return service_find(&key.address, tuple->destination_port, packet->key.protocol, false, service);
}

/*
 * How long a packet may be that comes in a tunnel from that node, as long as both ways there are alike. 0: that is
 * not known. A packet longer than any makes the kernel say.
 */
static __always_inline __u16 tunnel_mtu(const struct packet *packet, const struct address *node)
{
	struct tuple back = { .destination = *node };
	struct route route;

	if (route_find_wider(packet, &back, 0xffff - packet->length, &route) != ROUTE_TOO_BIG)
		return 0;
	return route.fib.mtu_result - ip_header_length(packet->ipv6);
}

/* Handles scratch->packet, which a tunnel has brought, and is of no flow. PACKET_OPENS: scratch->birth is the flow.
 */
__noinline int tunnel_new_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct service_view service;
	struct packet packet = {};
	struct backend *backend;
	struct birth *birth;

	if (!scratch)
		return PACKET_DROP;
	scratch_load(&packet, context, scratch);
	backend = backend_find(scratch->target_index);
	if (!backend || tunnel_service(&packet, &service) != SERVICE_FOUND || !tuple_is_of_hosts(&packet.key.tuple))
		return tunnel_drop();
	birth = flow_prepare(&packet, service.service, scratch->target_index, backend, 0);
	if (!birth)
		return PACKET_DROP;
	if (packet_is_syn(&packet))
		birth->answers_mtu = tunnel_mtu(&packet, &scratch->tunnel_source);
	return PACKET_OPENS;
}

/* Handles scratch->packet, which a tunnel has brought, of the flow scratch->view. PACKET_BEGINS: that leads
 * elsewhere. */
__noinline int tunnel_deliver_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct packet packet = {};
	struct flow_view view = {};

	if (!scratch)
		return PACKET_DROP;
	scratch_load(&packet, context, scratch);
	node_view(scratch, &view);
	return tunnel_leads(&view, scratch) ? tunnel_deliver(&packet, scratch, &view) : PACKET_BEGINS;
}

/* Handles scratch->packet, which is IP in IP. Returns the verdict, or PACKET_ICMP, as tunnel_unpack_scratch(). */
static __always_inline int tunnel_arrive(packet_context *context)
{
	int verdict = tunnel_unpack_scratch(context);

	if (verdict == PACKET_TUNNEL)
		verdict = tunnel_known_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = tunnel_place_scratch(context);
	if (verdict == PACKET_TUNNEL)
		verdict = tunnel_known_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = node_embryo_scratch(context);
	if (verdict == PACKET_TRANSLATES)
		verdict = tunnel_deliver_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = tunnel_new_scratch(context);
	if (verdict == PACKET_OPENS)
		verdict = node_open_scratch(context);
	return verdict == PACKET_TRANSLATES ? tunnel_deliver_scratch(context) : verdict;
}

#endif
