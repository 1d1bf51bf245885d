/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Direct server return: a packet goes to its backend's node as the client has sent it, in a packet from this node to
 * the backend (RFC 2003, RFC 2473), and that node answers the client itself (tunnel_arrive.h).
 *
 * The backend's port goes along where nobody reads it: in the identification of IPv4, as the packet may not be cut
 * (RFC 6864, 4.1), and in the flow label of IPv6. The outer header has the DSCP of the inner, and says nothing of
 * congestion (RFC 6040, 4.3: compatibility mode).
 */
#ifndef WEIR_TUNNEL_H
#define WEIR_TUNNEL_H

#include "flow.h"
#include "node_translate.h"

#define TUNNEL_TTL 64
#define TUNNEL_DSCP 0xfc

static __always_inline __sum16 tunnel_header_checksum(const struct iphdr *ip)
{
	const __u32 *words = (const __u32 *)ip;

	return ~checksum_fold(checksum_sum((__u64)words[0] + words[1] + words[2] + words[3] + words[4]));
}

static __always_inline bool tunnel_write_ipv4(struct packet *packet, const struct tuple *to, __u32 length)
{
	struct iphdr *outer = packet_at(packet, packet->ip_offset, 2 * sizeof(*outer)), *inner = outer + 1;

	if (!outer)
		return false;
	inner->check = checksum_apply(inner->check, checksum_sum(checksum_delta(bpf_htons(0x0100), 0)));
	inner->ttl--;
	*outer = (struct iphdr){
		.version = 4,
		.ihl = sizeof(*outer) / 4,
		.tos = inner->tos & TUNNEL_DSCP,
		.tot_len = bpf_htons(length),
		.id = to->destination_port,
		.frag_off = bpf_htons(IPV4_DONT_FRAGMENT),
		.ttl = TUNNEL_TTL,
		.protocol = IPPROTO_IPIP,
		.saddr = address_ipv4(&to->source),
		.daddr = address_ipv4(&to->destination),
	};
	outer->check = tunnel_header_checksum(outer);
	return true;
}

#define IPV6_VERSION (6U << 28)
#define IPV6_DSCP (TUNNEL_DSCP << 20)

static __always_inline bool tunnel_write_ipv6(struct packet *packet, const struct tuple *to, __u32 length)
{
	struct ipv6hdr *outer = packet_at(packet, packet->ip_offset, 2 * sizeof(*outer)), *inner = outer + 1;
	__u32 dscp;

	if (!outer)
		return false;
	inner->hop_limit--;
	dscp = bpf_ntohl(*(const __be32 *)inner) & IPV6_DSCP;
	*(__be32 *)outer = bpf_htonl(IPV6_VERSION | dscp | bpf_ntohs(to->destination_port));
	outer->payload_len = bpf_htons(length - sizeof(*outer));
	outer->nexthdr = IPPROTO_IPV6;
	outer->hop_limit = TUNNEL_TTL;
	__builtin_memcpy(&outer->saddr, &to->source, sizeof(outer->saddr));
	__builtin_memcpy(&outer->daddr, &to->destination, sizeof(outer->daddr));
	return true;
}

/* Puts the packet into one to the backend. False: it must be dropped. */
static __always_inline bool tunnel_write(struct packet *packet, const struct tuple *to)
{
	__u32 header = ip_header_length(packet->ipv6), length = packet->length + header;

	if (!packet_widen(packet, header))
		return false;
	if (length > 0xffff)
		length = packet->ipv6 ? header : 0; /* several segments, each of which gets its own length */
	return packet->ipv6 ? tunnel_write_ipv6(packet, to, length) : tunnel_write_ipv4(packet, to, length);
}

/* A packet that its way to the backend takes only without the tunnel. */
static __always_inline int tunnel_too_big(struct packet *packet, struct scratch *scratch, struct device *device,
					  __u32 mtu)
{
	if (!packet_may_be_cut(packet))
		return reply_too_big(packet, device, mtu);
	scratch->cut.mtu = mtu;
	return PACKET_CUTS;
}

/* Accounts scratch->packet, whose way is certain, and remembers that. */
static __always_inline void tunnel_account(const struct packet *packet, const struct route *route)
{
	struct flow_view view = {};

	if (!flow_find(&packet->key, &view) || view.action != FLOW_TUNNEL)
		return; /* an ICMP error has no ports */
	flow_account(packet, &view);
	if (PACKET_IS_XDP)
		hop_remember(&view.flow->hop, route, packet->now);
}

/* A packet of a flow that a policy has come to concern. */
static __always_inline int tunnel_ends(struct packet *packet, const struct tuple *to)
{
	struct flow_view view = { .to = *to, .half = FLOW_HALF_FORWARD };

	return policy_ends_flow(packet, &view);
}

/* Sends a packet of which only the flow is known. Returns the verdict. */
static __always_inline int tunnel_send_routed(struct packet *packet, struct scratch *scratch, struct device *device)
{
	struct tuple *to = &scratch->tunnel.to;
	__u32 header = ip_header_length(packet->ipv6);
	enum route_result result;
	struct route route;

	if (packet->ttl <= 1)
		return reply_time_exceeded(packet, device);
	if (policy_concerns(packet, to))
		return tunnel_ends(packet, to);
	result = route_find_wider(packet, to, header, &route);
	if (result == ROUTE_TOO_BIG)
		return tunnel_too_big(packet, scratch, device, route.fib.mtu_result - header);
	if (!packet_can_send(packet, result, &route))
		return node_refuse(packet, device, result, &route);
	tunnel_account(packet, &route);
	if (!tunnel_write(packet, to))
		return node_drop();
	count(tunnel_sent);
	return packet_send(packet, device, &route);
}

/* Sends scratch->packet in scratch->tunnel. Returns the verdict. */
__noinline int tunnel_send_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);

	if (!scratch)
		return PACKET_PASS;
	if (!PACKET_IS_XDP || !scratch->tunnel.ready)
		return tunnel_send_routed(&packet, scratch, device);
	if (!tunnel_write(&packet, &scratch->tunnel.to))
		return node_drop();
	count(tunnel_sent);
	return packet_send_hop(&packet, &scratch->tunnel.hop);
}

#endif
