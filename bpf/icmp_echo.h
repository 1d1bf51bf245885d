/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Pings of VIPs, answered in the packet's own buffer where a backend would answer, so that ping tells the truth. */
#ifndef WEIR_ICMP_ECHO_H
#define WEIR_ICMP_ECHO_H

#include "frontend.h"
#include "icmp.h"

/* Whether the packet, which is ICMP, is a ping of a VIP that answers on that side, a flag of map vips. The node's
 * addresses are the stack's. */
static __always_inline bool echo_is_asked(const struct packet *packet, __u32 side)
{
	struct icmp_header *icmp = packet_at(packet, packet->transport_offset, sizeof(*icmp));
	const struct tuple *tuple = &packet->key.tuple;
	__u32 *vip;

	if (!icmp || icmp->type != (packet->ipv6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO_REQUEST) || icmp->code)
		return false;
	if (packet->transport_offset + sizeof(*icmp) > packet->ip_offset + packet->length ||
	    !tuple_is_of_hosts(tuple))
		return false;
	vip = bpf_map_lookup_elem(&vips, &tuple->destination);
	return vip && *vip & side && !address_is_of_node(&tuple->destination);
}

/* Turns the IP header around; addresses that change places leave its checksum as it was. */
static __always_inline bool echo_write_ip(struct packet *packet)
{
	const struct tuple *tuple = &packet->key.tuple;
	struct ipv6hdr *ipv6;
	struct iphdr *ipv4;
	__u32 delta;

	if (packet->ipv6) {
		ipv6 = packet_at(packet, packet->ip_offset, sizeof(*ipv6));
		if (!ipv6)
			return false;
		__builtin_memcpy(&ipv6->saddr, &tuple->destination, sizeof(ipv6->saddr));
		__builtin_memcpy(&ipv6->daddr, &tuple->source, sizeof(ipv6->daddr));
		ipv6->hop_limit = ICMP_TTL;
		return true;
	}
	ipv4 = packet_at(packet, packet->ip_offset, sizeof(*ipv4));
	if (!ipv4)
		return false;
	delta = checksum_sum(checksum_delta(bpf_htons((__u16)ipv4->ttl << 8), bpf_htons(ICMP_TTL << 8)));
	ipv4->saddr = address_ipv4(&tuple->destination);
	ipv4->daddr = address_ipv4(&tuple->source);
	ipv4->ttl = ICMP_TTL;
	ipv4->check = checksum_apply(ipv4->check, delta);
	return true;
}

static __always_inline bool echo_write(struct packet *packet)
{
	struct icmp_header *icmp = packet_at(packet, packet->transport_offset, sizeof(*icmp));
	__u8 reply = packet->ipv6 ? ICMPV6_ECHO_REPLY : ICMP_ECHO_REPLY;

	if (!icmp)
		return false;
	icmp->checksum = checksum_apply(icmp->checksum, checksum_sum(checksum_delta(bpf_htons((__u16)icmp->type << 8),
										    bpf_htons((__u16)reply << 8))));
	icmp->type = reply;
	return echo_write_ip(packet);
}

/* Answers a ping of a VIP. Returns the verdict. */
static __always_inline int echo_answer(struct packet *packet, struct scratch *scratch, const struct device *device)
{
	if (!icmp_within_rate(&scratch->echoes)) {
		count(icmp_limited);
		return PACKET_DROP;
	}
	if (!echo_write(packet)) {
		count(drop_rewrite_failed);
		return PACKET_DROP;
	}
	count(icmp_echo);
	return packet_return(packet, device);
}

#endif
