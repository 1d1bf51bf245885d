/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Rewrites a packet's tuple, with every checksum that covers it. */
#ifndef WEIR_NAT_H
#define WEIR_NAT_H

#include "checksum.h"
#include "packet.h"

static __always_inline __be32 tuple_ports(const struct tuple *tuple)
{
	__be32 ports;

	__builtin_memcpy(&ports, &tuple->source_port, sizeof(ports));
	return ports;
}

static __always_inline bool nat_write_ipv4(struct packet *packet, const struct tuple *to, __u32 address_delta)
{
	struct iphdr *ip = packet_at(packet, packet->ip_offset, sizeof(*ip));

	if (!ip)
		return false;
	ip->saddr = address_ipv4(&to->source);
	ip->daddr = address_ipv4(&to->destination);
	ip->check = checksum_apply(ip->check, address_delta);
	return true;
}

static __always_inline bool nat_write_ipv6(struct packet *packet, const struct tuple *to)
{
	struct ipv6hdr *ip = packet_at(packet, packet->ip_offset, sizeof(*ip));

	if (!ip)
		return false;
	__builtin_memcpy(&ip->saddr, &to->source, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &to->destination, sizeof(ip->daddr));
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

/* False: the kernel refused; the packet may be half written and must be dropped. */
static __always_inline bool nat_rewrite(struct packet *packet, const struct tuple *to)
{
	const struct tuple *from = &packet->key.tuple;
	__u32 address_delta =
		checksum_sum(checksum_delta_address(&from->source, &to->source, packet->ipv6) +
			     checksum_delta_address(&from->destination, &to->destination, packet->ipv6));
	__u32 port_delta = checksum_sum(checksum_delta(tuple_ports(from), tuple_ports(to)));

	if (!packet_update_checksum(packet, address_delta, port_delta))
		return false;
	if (packet->ipv6 ? !nat_write_ipv6(packet, to) : !nat_write_ipv4(packet, to, address_delta))
		return false;
	return nat_write_ports(packet, to);
}

/* What a router does to a packet it forwards (RFC 1812, 5.3.1). */
static __always_inline bool nat_decrement_ttl(struct packet *packet)
{
	struct ipv6hdr *ipv6;
	struct iphdr *ipv4;

	if (packet->ipv6) {
		ipv6 = packet_at(packet, packet->ip_offset, sizeof(*ipv6));
		if (!ipv6)
			return false;
		ipv6->hop_limit--;
		return true;
	}
	ipv4 = packet_at(packet, packet->ip_offset, sizeof(*ipv4));
	if (!ipv4)
		return false;
	ipv4->ttl--;
	ipv4->check = checksum_apply(ipv4->check, checksum_sum(checksum_delta(bpf_htons(0x0100), 0)));
	return true;
}

#endif
