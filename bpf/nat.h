/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Rewrites a packet's tuple, with every checksum that covers it. */
#ifndef WEIR_NAT_H
#define WEIR_NAT_H

#include "checksum.h"
#include "packet.h"

static __always_inline bool nat_write_ipv4(struct packet *packet, const struct tuple *to, __u32 address_delta,
					   bool forward)
{
	__u64 delta = address_delta;

	struct iphdr *ip = packet_at(packet, packet->ip_offset, sizeof(*ip));

	if (!ip)
		return false;
	ip->saddr = address_ipv4(&to->source);
	ip->daddr = address_ipv4(&to->destination);
	if (forward) {
		ip->ttl--;
		delta += checksum_delta(bpf_htons(0x0100), 0);
	}
	ip->check = checksum_apply(ip->check, checksum_sum(delta));
	return true;
}

static __always_inline bool nat_write_ipv6(struct packet *packet, const struct tuple *to, bool forward)
{
	struct ipv6hdr *ip = packet_at(packet, packet->ip_offset, sizeof(*ip));

	if (!ip)
		return false;
	__builtin_memcpy(&ip->saddr, &to->source, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &to->destination, sizeof(ip->daddr));
	if (forward)
		ip->hop_limit--;
	return true;
}

static __always_inline bool nat_write_ports(struct packet *packet, const struct tuple *to)
{
	__be32 *ports = packet_at(packet, packet->transport_offset, sizeof(*ports));

	if (!ports)
		return false;
	*ports = tuple_ports(to);
	return true;
}

/* What the addresses add to a sum. */
static __always_inline __u32 nat_address_delta(const struct packet *packet, const struct tuple *to)
{
	const struct tuple *from = &packet->key.tuple;

	return checksum_sum(checksum_delta_address(&from->source, &to->source, packet->ipv6) +
			    checksum_delta_address(&from->destination, &to->destination, packet->ipv6));
}

static __always_inline __u32 nat_port_delta(const struct packet *packet, const struct tuple *to)
{
	return checksum_sum(checksum_delta(tuple_ports(&packet->key.tuple), tuple_ports(to)));
}

/* Addresses that no checksum in the transport header covers. */
static __always_inline bool nat_write_addresses(struct packet *packet, const struct tuple *to, bool forward)
{
	__u32 delta = nat_address_delta(packet, to);

	if (!packet->ipv6)
		return nat_write_ipv4(packet, to, delta, forward);
	packet_update_sum(packet, delta);
	return nat_write_ipv6(packet, to, forward);
}

/* SCTP, and fragments without a transport header, which have addresses alone. */
static __always_inline bool nat_rewrite_other(struct packet *packet, const struct tuple *to, bool forward)
{
	if (!nat_write_addresses(packet, to, forward))
		return false;
	if (!PACKET_IS_XDP && packet->checksum == PACKET_CHECKSUM_ELSEWHERE)
		return true;
	if (!sctp_update_checksum(packet->context, packet->transport_offset, packet_transport_bytes(packet),
				  tuple_ports(&packet->key.tuple) ^ tuple_ports(to)))
		return false;
	packet_update_sum(packet, nat_port_delta(packet, to));
	return nat_write_ports(packet, to);
}

/*
 * `forward`: and does what a router owes a packet (RFC 1812, 5.3.1). False: the kernel refused; the packet may be
 * half written and must be dropped.
 */
static __always_inline bool nat_rewrite(struct packet *packet, const struct tuple *to, bool forward)
{
	__u32 address_delta;

	if (__builtin_expect(packet->checksum != PACKET_CHECKSUM_INTERNET, false))
		return nat_rewrite_other(packet, to, forward);
	address_delta = nat_address_delta(packet, to);
	if (!packet_update_checksum(packet, address_delta, nat_port_delta(packet, to)))
		return false;
	if (packet->ipv6 ? !nat_write_ipv6(packet, to, forward) : !nat_write_ipv4(packet, to, address_delta, forward))
		return false;
	return nat_write_ports(packet, to);
}

#endif
