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

/* Whether the tunnel leads to a backend here of that protocol. */
static __always_inline bool tunnel_leads_here(struct scratch *scratch, __u8 protocol)
{
	scratch->target.protocol = protocol;
	scratch->target_index = tunnel_target_find();
	return scratch->target_index;
}

/* The same of any protocol. */
static __always_inline bool tunnel_leads_here_at_all(struct scratch *scratch)
{
	return tunnel_leads_here(scratch, IPPROTO_TCP) || tunnel_leads_here(scratch, IPPROTO_UDP) ||
	       tunnel_leads_here(scratch, IPPROTO_SCTP);
}

/* Whether that hides of which protocol's flow a packet is: ICMP does, and what may stand before a header. */
static __always_inline bool protocol_hides(__u8 protocol, bool ipv6)
{
	if (!ipv6)
		return protocol == IPPROTO_ICMP;
	return protocol == IPPROTO_ICMPV6 || protocol == IPPROTO_FRAGMENT || is_extension(protocol);
}

/* What follows the IP header of the packet within. */
static __always_inline __u8 tunnel_protocol(const struct packet *packet)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;

	if (packet->ipv6) {
		ip6 = packet_at(packet, packet->transport_offset, sizeof(*ip6));
		return ip6 ? ip6->nexthdr : 0;
	}
	ip = packet_at(packet, packet->transport_offset, sizeof(*ip));
	return ip ? ip->protocol : 0;
}

/* Finds the backend here that the tunnel of scratch->packet leads to. False: it is somebody else's tunnel. */
static __always_inline bool tunnel_find_target(struct scratch *scratch, const struct packet *packet)
{
	struct tunnel_target *target = &scratch->target;
	__u8 protocol = tunnel_protocol(packet);

	target->address = packet->key.tuple.destination;
	target->port = tunnel_port(packet);
	target->pad = 0;
	return protocol_hides(protocol, packet->ipv6) ? tunnel_leads_here_at_all(scratch)
						      : tunnel_leads_here(scratch, protocol);
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

static __always_inline int tunnel_drop(void)
{
	count(drop_tunnel_unknown);
	return PACKET_DROP;
}

/* Takes the outer header off scratch->packet, which is IP in IP. Returns the verdict, or PACKET_AGAIN. */
__noinline int tunnel_unpack_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	__s32 header;

	if (!scratch || packet.tagged || !packet_is_for(&packet, device) ||
	    !address_has_tunnels(&packet.key.tuple.source))
		return PACKET_PASS;
	packet_make_linear(context);
	if (!tunnel_find_target(scratch, &packet))
		return PACKET_PASS;
	scratch->tunnel_source = packet.key.tuple.source;
	header = ip_header_length(packet.ipv6);
	if (bpf_skb_adjust_room(context, -header, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return node_drop();
	return PACKET_AGAIN;
}

/* Reads what a tunnel has brought. Returns the verdict; or, with it in the scratch, PACKET_TUNNEL or PACKET_ICMP. */
__noinline int tunnel_inner_scratch(packet_context *context)
{
	struct packet packet = { .context = context, .key.edge = EDGE_ID_NODE, .now = bpf_jiffies64() };
	struct device *device = device_of_packet(context, packet.now);
	struct scratch *scratch = scratch_find();
	enum parse_result parsed;

	if (!device || !scratch)
		return PACKET_DROP;
	parsed = packet_parse(&packet, !(device->flags & DEVICE_NO_ETHERNET));
	parsed = verifier_forget(parsed, packet.now);
	if (parsed == PARSE_FRAGMENT) {
		parsed = tunnel_parse_fragment(&packet);
		if (parsed == PARSE_FRAGMENT)
			return fragment_drop();
	}
	packet_copy(&scratch->packet, &packet);
	if (parsed != PARSE_ICMP && (parsed != PARSE_OK || !tunnel_leads_here(scratch, packet.key.protocol)))
		return tunnel_drop();
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
	flow_resume(scratch, &view);
	return tunnel_leads(&view, scratch) ? tunnel_deliver(&packet, scratch, &view) : PACKET_BEGINS;
}

/* Handles scratch->packet, which is IP in IP. Returns the verdict, or PACKET_ICMP: that is what it carried. */
static __always_inline int tunnel_arrive(packet_context *context)
{
	int verdict = tunnel_unpack_scratch(context);

	if (verdict == PACKET_AGAIN)
		verdict = tunnel_inner_scratch(context);
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
		verdict = flow_begin_scratch(context);
	return verdict == PACKET_TRANSLATES ? tunnel_deliver_scratch(context) : verdict;
}

#endif
