/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a client is told that cannot be served: a reset for TCP, an ABORT for SCTP, port unreachable for UDP. At tc
 * alone.
 */
#ifndef WEIR_REJECT_H
#define WEIR_REJECT_H

#include "abort.h"
#include "icmp.h"

struct reset_fields {
	__be32 sequence;
	__be32 acknowledgement;
	__u8 offset;
	__u8 flags;
	__be16 window;
};

/* The segment a closed port answers with, RFC 9293, 3.10.7.1. */
static __always_inline void reset_fields_fill(struct reset_fields *reset, const struct packet *packet,
					      const struct tcphdr *tcp, __u32 payload)
{
	reset->offset = (sizeof(*tcp) / 4) << 4;
	reset->window = 0;
	if (packet->tcp_flags & TCP_ACK) {
		reset->sequence = tcp->ack_seq;
		reset->acknowledgement = 0;
		reset->flags = TCP_RST;
		return;
	}
	if (packet->tcp_flags & TCP_SYN)
		payload++;
	if (packet->tcp_flags & TCP_FIN)
		payload++;
	reset->sequence = 0;
	reset->acknowledgement = bpf_htonl(bpf_ntohl(tcp->seq) + payload);
	reset->flags = TCP_RST | TCP_ACK;
}

/*
 * The checksum of a bare TCP header at `offset`, from the ground up: the pseudo header alone where the
 * device shall complete it, else all of it.
 */
static __always_inline __u16 reset_checksum(const struct packet *packet, struct tcphdr *tcp, bool partial)
{
	const struct tuple *tuple = &packet->key.tuple;
	__u64 sum = bpf_htonl(sizeof(*tcp)) + (__u64)bpf_htonl(IPPROTO_TCP);
	const __be32 *source = address_words_const(&tuple->source);
	const __be32 *destination = address_words_const(&tuple->destination);

	sum += (__u64)source[3] + destination[3];
	if (packet->ipv6)
		sum += (__u64)source[0] + source[1] + source[2] + destination[0] + destination[1] + destination[2];
	if (partial)
		return checksum_fold(checksum_sum(sum));
	tcp->check = 0;
	return ~checksum_fold(bpf_csum_diff(NULL, 0, (void *)tcp, sizeof(*tcp), checksum_sum(sum)));
}

static __always_inline bool reset_write_tcp(struct packet *packet, const struct reset_fields *reset, bool partial)
{
	struct tcphdr *tcp = packet_at(packet, packet->transport_offset, sizeof(*tcp));

	if (!tcp)
		return false;
	tcp->source = packet->key.tuple.destination_port;
	tcp->dest = packet->key.tuple.source_port;
	tcp->seq = reset->sequence;
	tcp->ack_seq = reset->acknowledgement;
	((__u8 *)tcp)[12] = reset->offset;
	((__u8 *)tcp)[13] = reset->flags;
	tcp->window = reset->window;
	tcp->urg_ptr = 0;
	tcp->check = reset_checksum(packet, tcp, partial);
	return true;
}

/* Turns the IP header around; what stood between it and the transport header stays. `transport`: bytes behind it. */
static __always_inline bool reset_write_ip(struct packet *packet, __u32 transport)
{
	const struct tuple *tuple = &packet->key.tuple;
	__u32 length = packet->transport_offset - packet->ip_offset + transport;
	struct ipv6hdr *ipv6;
	struct iphdr *ipv4;
	__u32 delta;

	if (packet->ipv6) {
		ipv6 = packet_at(packet, packet->ip_offset, sizeof(*ipv6));
		if (!ipv6)
			return false;
		__builtin_memcpy(&ipv6->saddr, &tuple->destination, sizeof(ipv6->saddr));
		__builtin_memcpy(&ipv6->daddr, &tuple->source, sizeof(ipv6->daddr));
		ipv6->payload_len = bpf_htons(length - sizeof(*ipv6));
		ipv6->hop_limit = ICMP_TTL;
		return true;
	}
	ipv4 = packet_at(packet, packet->ip_offset, sizeof(*ipv4));
	if (!ipv4)
		return false;
	delta = checksum_sum(checksum_delta(ipv4->tot_len, bpf_htons(length)) +
			     checksum_delta(bpf_htons((__u16)ipv4->ttl << 8), bpf_htons(ICMP_TTL << 8)));
	ipv4->saddr = address_ipv4(&tuple->destination);
	ipv4->daddr = address_ipv4(&tuple->source);
	ipv4->tot_len = bpf_htons(length);
	ipv4->ttl = ICMP_TTL;
	ipv4->check = checksum_apply(ipv4->check, delta);
	return true;
}

/* Turns a TCP segment into the reset that answers it, but for the IP header. False: the kernel refused. */
static __always_inline bool reset_write(struct packet *packet)
{
	__u32 field = packet->transport_offset + __builtin_offsetof(struct tcphdr, check);
	__u32 headers = packet->transport_offset - packet->ip_offset + packet->transport_length;
	struct tcphdr *tcp = packet_at(packet, packet->transport_offset, sizeof(*tcp));
	struct reset_fields reset;
	int partial;

	if (!tcp)
		return false;
	reset_fields_fill(&reset, packet, tcp, packet->length - headers);
	partial = checksum_is_partial(packet->context, field);
	return partial >= 0 &&
	       !bpf_skb_change_tail(packet->context, packet->transport_offset + sizeof(struct tcphdr), 0) &&
	       reset_write_tcp(packet, &reset, partial);
}

/* Answers scratch->packet with a reset, or an ABORT. Returns the verdict. */
__noinline int reset_send_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	bool sctp;

	if (!scratch)
		return PACKET_DROP;
	if (packet.tcp_flags & TCP_RST)
		return PACKET_DROP;
	if (packet.fragment) { /* its headers would make the answer one too */
		count(drop_fragment);
		return PACKET_DROP;
	}
	sctp = packet.key.protocol == IPPROTO_SCTP;
	if (!(sctp ? abort_write(&packet) : reset_write(&packet)) ||
	    !reset_write_ip(&packet, sctp ? sizeof(struct sctp_packet) : sizeof(struct tcphdr))) {
		count(drop_rewrite_failed);
		return PACKET_DROP;
	}
	if (sctp)
		count(reject_sctp_abort);
	else
		count(reject_tcp_reset);
	return packet_return(&packet, device);
}

/*
 * Answers a packet of a connection with a reset, or an ABORT: the verdict of scratch->packet, for
 * reset_send_scratch() to carry out where the stack is empty.
 */
static __always_inline int reset(const struct packet *packet)
{
	return scratch_save(packet) ? PACKET_RESETS : PACKET_DROP;
}

/* The answer of a backend that does not have the flow (try.h): it shall not wait for the client. */
static __always_inline int refuse_lost(const struct packet *packet)
{
	count(drop_lost_try);
	return reset(packet);
}

/* Refuses a packet that would have opened a flow. Returns the verdict. */
static __always_inline int reject(struct packet *packet, struct device *device)
{
	struct icmp_error error = {
		.type4 = ICMP_DEST_UNREACH,
		.code4 = ICMP_PORT_UNREACH,
		.type6 = ICMPV6_DEST_UNREACH,
		.code6 = ICMPV6_PORT_UNREACH,
		.source = packet->key.tuple.destination,
	};

	if (packet_is_of_connection(packet))
		return reset(packet);
	count(reject_unreachable);
	return icmp_send(packet, &error);
}

/* Carries out a verdict that is an answer. */
static __always_inline int packet_answer(packet_context *context, int verdict)
{
	if (verdict == PACKET_RESETS)
		return reset_send_scratch(context);
	return verdict == PACKET_ERROR ? icmp_send_scratch(context) : verdict;
}

/* A packet that we cannot send on goes to the stack as it is. */
static __always_inline int packet_pass_up(void)
{
	return PACKET_PASS;
}

/*
 * Whom errors come from that the node has to tell: a device without an address speaks as the one asked. So does the
 * node to itself: its stack takes nothing from its own addresses.
 */
static __always_inline struct address router_address(const struct packet *packet, const struct device *device)
{
	const struct address *address = device_address(device, packet->ipv6);

	return PACKET_BACK || address_is_zero(address) ? packet->key.tuple.destination : *address;
}

/* What a router says of a packet it cannot forward (RFC 1812, 4.3.3; RFC 4443, 3.2 and 3.3). */
static __always_inline int reply_too_big(struct packet *packet, struct device *device, __u32 mtu)
{
	struct icmp_error error = {
		.type4 = ICMP_DEST_UNREACH,
		.code4 = ICMP_FRAG_NEEDED,
		.type6 = ICMPV6_PKT_TOOBIG,
		.mtu = mtu,
		.source = router_address(packet, device),
	};

	count(icmp_too_big);
	return icmp_send(packet, &error);
}

static __always_inline int reply_time_exceeded(struct packet *packet, struct device *device)
{
	struct icmp_error error = {
		.type4 = ICMP_TIME_EXCEEDED,
		.type6 = ICMPV6_TIME_EXCEED,
		.source = router_address(packet, device),
	};

	count(icmp_time_exceeded);
	return icmp_send(packet, &error);
}

#endif
