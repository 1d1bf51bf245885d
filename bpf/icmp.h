/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP and ICMPv6 errors about a packet, sent back to where it came from, in the packet's own buffer. At tc
 * alone: XDP passes up what needs an answer.
 */
#ifndef WEIR_ICMP_H
#define WEIR_ICMP_H

#include "checksum.h"
#include "flow.h"
#include "icmp_header.h"
#include "scratch.h"

#define ICMP_TTL 64
/* Errors, and answers to pings, that a CPU sends in a second at most (RFC 1812, 4.3.2.8). */
#define ICMP_RATE 1000

static __always_inline bool icmp_within_rate(struct icmp_rate *rate)
{
	__u32 second = flow_now() / jiffies_per_second;

	if (rate->second != second) {
		rate->second = second;
		rate->spent = 0;
	}
	return rate->spent++ < ICMP_RATE;
}

/* The sum of `size` bytes of the packet, a multiple of 4. */
static __always_inline int icmp_sum(struct packet *packet, struct scratch *scratch, __u32 offset, __u32 size,
				    __u32 *sum)
{
	if (!length_is_within(&size, ICMP_QUOTE_MAX) ||
	    bpf_skb_load_bytes(packet->context, offset, scratch->quote, size))
		return -1;
	*sum = bpf_csum_diff(NULL, 0, (void *)scratch->quote, size, 0);
	return 0;
}

/*
 * The sum of the quoted bytes. Of a partial checksum in it, the value that a device without checksum offload
 * will write over it on the way out is summed instead.
 */
static __always_inline int icmp_quote_sum(struct packet *packet, struct scratch *scratch, __u32 quoted, __u32 *sum)
{
	__u32 header = packet->transport_offset - packet->ip_offset;
	__u32 field_offset = packet->transport_offset + transport_checksum_offset(packet->key.protocol);
	int partial = checksum_is_partial(packet->context, field_offset);
	__u32 header_sum;
	__u16 *field;

	if (partial < 0 || quoted <= header || icmp_sum(packet, scratch, packet->ip_offset, header, &header_sum) ||
	    icmp_sum(packet, scratch, packet->transport_offset, quoted - header, sum))
		return -1;
	if (partial) {
		if (packet->key.protocol == IPPROTO_SCTP)
			return -1; /* what will be written there is no sum of sums */
		field = packet_at(packet, field_offset, sizeof(*field));
		if (!field)
			return -1;
		*sum = checksum_sum((__u64)*sum + (__u16) ~*field + (__u16)~checksum_fold(*sum));
	}
	*sum = checksum_sum((__u64)*sum + header_sum);
	return 0;
}

struct icmp4_packet {
	struct iphdr ip;
	struct icmp_header icmp;
};

static __always_inline int icmp4_write(struct packet *packet, const struct icmp_error *error, __u32 quoted, __u32 sum)
{
	struct icmp4_packet header = {
		.ip = {
			.version = 4,
			.ihl = 5,
			.tos = 0xc0, /* internetwork control, RFC 1812, 4.3.2.5 */
			.tot_len = bpf_htons(sizeof(header) + quoted),
			.ttl = ICMP_TTL,
			.protocol = IPPROTO_ICMP,
			.saddr = address_ipv4(&error->source),
			.daddr = address_ipv4(&packet->key.tuple.source),
		},
		.icmp = {
			.type = error->type4,
			.code = error->code4,
			.rest = bpf_htonl(error->mtu), /* 16 bits of it, RFC 1191 */
		},
	};

	header.ip.check = ~checksum_fold(bpf_csum_diff(NULL, 0, (void *)&header.ip, sizeof(header.ip), 0));
	header.icmp.checksum = ~checksum_fold(bpf_csum_diff(NULL, 0, (void *)&header.icmp, sizeof(header.icmp), sum));
	return bpf_skb_store_bytes(packet->context, packet->ip_offset, &header, sizeof(header), 0);
}

struct icmp6_packet {
	struct ipv6hdr ip;
	struct icmp_header icmp;
};

static __always_inline int icmp6_write(struct packet *packet, const struct icmp_error *error, __u32 quoted, __u32 sum)
{
	struct icmp6_packet header = {
		.ip = {
			.version = 6,
			.payload_len = bpf_htons(sizeof(header.icmp) + quoted),
			.nexthdr = IPPROTO_ICMPV6,
			.hop_limit = ICMP_TTL,
		},
		.icmp = {
			.type = error->type6,
			.code = error->code6,
			.rest = bpf_htonl(error->mtu),
		},
	};

	__builtin_memcpy(&header.ip.saddr, &error->source, sizeof(header.ip.saddr));
	__builtin_memcpy(&header.ip.daddr, &packet->key.tuple.source, sizeof(header.ip.daddr));
	/* The pseudo header: both addresses, the length and the protocol. */
	sum = bpf_csum_diff(NULL, 0, (void *)&header.ip.saddr, 2 * sizeof(struct in6_addr), sum);
	sum = checksum_sum((__u64)sum + bpf_htonl(sizeof(header.icmp) + quoted) + bpf_htonl(IPPROTO_ICMPV6));
	sum = bpf_csum_diff(NULL, 0, (void *)&header.icmp, sizeof(header.icmp), sum);
	header.icmp.checksum = ~checksum_fold(sum);
	return bpf_skb_store_bytes(packet->context, packet->ip_offset, &header, sizeof(header), 0);
}

/* Turns the packet into the error about it that scratch->error describes. 0: the kernel refused. */
static __always_inline bool icmp_write(struct packet *packet, struct scratch *scratch)
{
	__u32 quoted = (packet->length < ICMP_QUOTE_MAX ? packet->length : ICMP_QUOTE_MAX) & 0x1fc;
	__u32 room = packet->ipv6 ? sizeof(struct icmp6_packet) : sizeof(struct icmp4_packet);
	__u32 sum;

	if (bpf_skb_change_tail(packet->context, packet->ip_offset + quoted, 0) ||
	    bpf_skb_pull_data(packet->context, packet->ip_offset + quoted) ||
	    icmp_quote_sum(packet, scratch, quoted, &sum) ||
	    bpf_skb_adjust_room(packet->context, room, BPF_ADJ_ROOM_MAC, 0))
		return false;
	if (packet->ipv6)
		return !icmp6_write(packet, &scratch->error, quoted, sum);
	return !icmp4_write(packet, &scratch->error, quoted, sum);
}

/* Sends scratch->error about scratch->packet back out of its device. Returns the verdict. */
__noinline int icmp_send_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);

	if (!scratch)
		return PACKET_DROP;
	if (scratch->packet.fragment == FRAGMENT_LATER) { /* nobody would know whose it is: RFC 1812, 4.3.2.7 */
		count(drop_fragment);
		return PACKET_DROP;
	}
	if (!icmp_within_rate(&scratch->errors)) {
		count(icmp_limited);
		return PACKET_DROP;
	}
	if (!icmp_write(&packet, scratch)) {
		count(drop_rewrite_failed);
		return PACKET_DROP;
	}
	return packet_return(&packet, device);
}

/* Answers the packet with an ICMP error: the verdict, for icmp_send_scratch() to carry out where the stack is empty.
 */
static __always_inline int icmp_send(const struct packet *packet, const struct icmp_error *error)
{
	struct scratch *scratch = scratch_save(packet);

	if (!scratch)
		return PACKET_DROP;
	scratch->error = *error;
	return PACKET_ERROR;
}

#endif
