/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about packets of flows, sent by somebody on their way: a router for which they are too big, a host
 * whose port is closed. An error quotes the packet as it was there, translated, and goes to where that came from.
 * So the quoted tuple turned around is the key of a half, and the error travels as that half's packets do: it gets
 * their addresses, and its quote becomes what the receiver had sent.
 *
 * The source of the error changes where that of the half's packets does, whoever the sender is, as with conntrack
 * (nf_nat_icmp_reply_translation): whom answers reach from the VIP, errors do.
 *
 * At tc alone; XDP passes ICMP up.
 */
#ifndef WEIR_ICMP_QUOTE_H
#define WEIR_ICMP_QUOTE_H

#include "checksum.h"
#include "flow.h"
#include "icmp_header.h"
#include "nat.h"
#include "try.h"

/* A quote is cut: what its length field says is not what is there. */
#define QUOTE_ANY_LENGTH 0x1ffff

/* Of the transport header; routers quote no less (RFC 792). */
#define QUOTE_TRANSPORT_MIN 8

/* Options of an ICMPv6 redirect that are looked at for the quote. */
#define REDIRECT_OPTIONS_MAX 3
#define REDIRECT_OPTION_PACKET 4 /* the Redirected Header, RFC 4861, 4.6.3 */

/* The ICMPv6 redirect behind its first eight bytes. */
struct redirect_header {
	struct in6_addr target;
	struct in6_addr destination;
};

struct redirect_option {
	__u8 type;
	__u8 length; /* in 8 bytes */
	__u8 rest[6];
};

static __always_inline enum quote_result quote_kind(const struct packet *packet, __u8 type)
{
	if (packet->ipv6) {
		if (type == ICMPV6_REDIRECT)
			return QUOTE_REDIRECT;
		return type < ICMPV6_INFORMATIONAL ? QUOTE_ERROR : QUOTE_NONE;
	}
	switch (type) {
	case ICMP_REDIRECT:
		return QUOTE_REDIRECT;
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		return QUOTE_ERROR;
	default:
		return QUOTE_NONE;
	}
}

/* Moves the cursor to the packet that an ICMPv6 redirect quotes. False: there is none. */
static __always_inline bool quote_redirected(struct cursor *cursor)
{
	struct redirect_option *option;
	int i;

	if (!cursor_take(cursor, sizeof(struct redirect_header)))
		return false;
	for (i = 0; i < REDIRECT_OPTIONS_MAX; i++) {
		option = cursor_take(cursor, sizeof(*option));
		if (!option || !option->length)
			return false;
		if (option->type == REDIRECT_OPTION_PACKET)
			return true;
		cursor->position += (option->length - 1) * 8;
	}
	return false;
}

/* The first fragment of a datagram has the transport header; no other can be told whose it is. */
static __always_inline enum parse_result quote_parse_fragment(struct cursor *cursor, struct packet *quote)
{
	struct fragment_header *fragment;
	struct iphdr *ip;

	if (!quote->ipv6) {
		ip = packet_at(quote, quote->ip_offset, sizeof(*ip));
		return ip && !(ip->frag_off & bpf_htons(IPV4_OFFSET_MASK)) ? PARSE_OK : PARSE_FRAGMENT;
	}
	fragment = cursor_take(cursor, sizeof(*fragment));
	if (!fragment)
		return PARSE_TRUNCATED;
	if (fragment->offset & bpf_htons(IPV6_OFFSET_MASK))
		return PARSE_FRAGMENT;
	quote->key.protocol = fragment->next;
	quote->transport_offset += sizeof(*fragment);
	return PARSE_OK;
}

/*
 * How much of a quoted transport header is rewritten, if it is there. 0: the protocol has no ports. A table, so that
 * the verifier does not go on with each protocol by itself.
 */
const __u8 quote_header_bytes[256] = {
	[IPPROTO_TCP] = sizeof(struct tcphdr),
	[IPPROTO_UDP] = sizeof(struct udphdr),
	[IPPROTO_SCTP] = QUOTE_TRANSPORT_MIN,
};

/* Reads the quoted transport header, as much as there is of it and of what is rewritten. `end` of the IP packet. */
static __always_inline enum parse_result quote_parse_transport(struct packet *quote, __u32 end)
{
	__u32 present, wanted = quote_header_bytes[quote->key.protocol];
	__be32 *ports;

	if (!wanted)
		return PARSE_NOT_OURS;
	if (quote->transport_offset + QUOTE_TRANSPORT_MIN > end)
		return PARSE_MALFORMED;
	present = end - quote->transport_offset;
	quote->transport_length = present < wanted ? QUOTE_TRANSPORT_MIN : wanted;
	ports = packet_at(quote, quote->transport_offset, sizeof(struct tcphdr));
	if (!ports && quote->transport_length > QUOTE_TRANSPORT_MIN)
		return PARSE_TRUNCATED;
	if (!ports)
		ports = packet_at(quote, quote->transport_offset, QUOTE_TRANSPORT_MIN);
	if (!ports)
		return PARSE_TRUNCATED;
	tuple_set_ports(&quote->key.tuple, *ports);
	return PARSE_OK;
}

/* Fills in `quote` as the packet that `packet` quotes, and says what that is about. */
static __always_inline enum parse_result quote_parse(const struct packet *packet, struct packet *quote,
						     enum quote_result *kind)
{
	struct cursor cursor = packet_cursor(quote->context);
	void *start = cursor.position;
	struct icmp_header *icmp;
	enum parse_result result;

	cursor.position += packet->transport_offset & PACKET_OFFSET_MASK;
	icmp = cursor_take(&cursor, sizeof(*icmp));
	if (!icmp)
		return PARSE_TRUNCATED;
	*kind = quote_kind(packet, icmp->type);
	if (*kind == QUOTE_NONE || (*kind == QUOTE_REDIRECT && packet->ipv6 && !quote_redirected(&cursor)))
		return PARSE_NOT_OURS;
	quote->ip_offset = cursor.position - start;
	quote->ipv6 = false;
	result = packet->ipv6 ? parse_ipv6(&cursor, quote, QUOTE_ANY_LENGTH)
			      : parse_ipv4(&cursor, quote, QUOTE_ANY_LENGTH);
	if (result == PARSE_FRAGMENT)
		result = quote_parse_fragment(&cursor, quote);
	if (result != PARSE_OK)
		return result;
	return quote_parse_transport(quote, packet->ip_offset + packet->length);
}

/* Fills in scratch->quoted.packet as what scratch->packet quotes, and says what that is about. Global: verified once.
 */
__noinline int quote_parse_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct packet quote = { .context = context };
	enum quote_result kind;

	if (!scratch)
		return QUOTE_NONE;
	scratch->quoted = (struct quoted){}; /* an earlier one shall not be taken for it */
	packet_make_linear(context);
	quote.key.edge = scratch->packet.key.edge;
	if (quote_parse(&scratch->packet, &quote, &kind) != PARSE_OK)
		return QUOTE_NONE;
	packet_copy(&scratch->quoted.packet, &quote);
	return kind;
}

/*
 * What scratch->packet quotes, and the half that it travels with. An error that goes elsewhere than where the quoted
 * packet came from is forged, or somebody else has translated it.
 */
static __always_inline enum quote_result quote_find(struct scratch *scratch, packet_context *context,
						    struct flow_view *view)
{
	enum quote_result kind = quote_parse_scratch(context);
	struct flow_key *key = &scratch->reverse, *quoted = &scratch->quoted.packet.key;

	if (kind == QUOTE_NONE || !address_equal(&scratch->packet.key.tuple.destination, &quoted->tuple.source))
		return QUOTE_NONE;
	flow_other_key(key, quoted, &quoted->tuple);
	if (!flow_find(key, view) || view->action == FLOW_FOREIGN)
		return QUOTE_NONE;
	view->action &= ~FLOW_ENDED; /* the client hears of that with its next packet */
	return kind == QUOTE_ERROR && try_has_rival() ? QUOTE_OF_TRY : kind;
}

/*
 * Finds what scratch->packet quotes, and leaves it in the scratch. Called before the function that goes on with it,
 * and not by that one: the stack of the one is not the other's.
 */
__noinline int quote_find_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct flow_view view = {};

	if (!scratch)
		return 0;
	scratch->quoted.result = quote_find(scratch, context, &view);
	view.flow = NULL;
	scratch->quoted.half = view;
	return 0;
}

/* Goes on with what quote_find_scratch() has found. */
static __always_inline enum quote_result quote_resume(struct packet *quote, packet_context *context,
						      const struct scratch *scratch)
{
	quote->context = context;
	packet_copy(quote, &scratch->quoted.packet);
	return scratch->quoted.result;
}

/*
 * Whether an error ends here, and counts it. Sent on, a redirect would tell of the MAC of a backend as that of the
 * VIP, or the other way around.
 */
static __always_inline bool quote_ends(enum quote_result kind)
{
	if (kind == QUOTE_REDIRECT)
		count(drop_icmp_redirect);
	if (kind == QUOTE_OF_TRY)
		count(drop_icmp_try);
	return kind == QUOTE_REDIRECT || kind == QUOTE_OF_TRY;
}

/*
 * The checksum in a quoted transport header; NULL: the quote ends before it, or there is none. That of SCTP stays:
 * who reads a quote knows it by its ports and its tag, and could not check it.
 */
static __always_inline __u16 *quote_checksum(const struct packet *quote)
{
	__u16 *field;

	if (quote->key.protocol == IPPROTO_UDP) {
		field = packet_at(quote, quote->transport_offset + __builtin_offsetof(struct udphdr, check),
				  sizeof(*field));
		return field && *field ? field : NULL;
	}
	if (quote->transport_length < sizeof(struct tcphdr))
		return NULL;
	return packet_at(quote, quote->transport_offset + __builtin_offsetof(struct tcphdr, check), sizeof(*field));
}

/* Gives the quoted packet another tuple. The sum of the quote grows by *delta. */
static __always_inline bool quote_rewrite(struct packet *quote, const struct tuple *to, __u64 *delta)
{
	const struct tuple *from = &quote->key.tuple;
	__u32 address_delta = checksum_sum(checksum_delta_address(&from->source, &to->source, quote->ipv6) +
					   checksum_delta_address(&from->destination, &to->destination, quote->ipv6));
	__u32 port_delta = checksum_sum(checksum_delta(tuple_ports(from), tuple_ports(to)));
	__u16 *field = quote_checksum(quote), before;

	*delta = port_delta;
	if (field) {
		before = *field;
		*field = checksum_apply(before, checksum_sum((__u64)address_delta + port_delta));
		if (!*field && quote->key.protocol == IPPROTO_UDP)
			*field = 0xffff;
		*delta += checksum_delta(before, *field);
	}
	if (!nat_write_ports(quote, to))
		return false;
	/* What the addresses add to the sum of an IPv4 header, its own checksum takes away. */
	if (!quote->ipv6)
		return nat_write_ipv4(quote, to, address_delta, false);
	*delta += address_delta;
	return nat_write_ipv6(quote, to, false);
}

/* Gives the error itself another source and destination, where its quote has grown by `delta`. */
static __always_inline bool quote_rewrite_error(struct packet *packet, const struct tuple *to, __u64 delta,
						bool forward)
{
	const struct tuple *from = &packet->key.tuple;
	__u32 address_delta =
		checksum_sum(checksum_delta_address(&from->source, &to->source, packet->ipv6) +
			     checksum_delta_address(&from->destination, &to->destination, packet->ipv6));
	struct icmp_header *icmp = packet_at(packet, packet->transport_offset, sizeof(*icmp));

	if (!icmp)
		return false;
	if (packet->ipv6)
		delta += address_delta; /* they are in the pseudo header, RFC 4443, 2.3 */
	icmp->checksum = checksum_apply(icmp->checksum, checksum_sum(delta));
	return packet->ipv6 ? nat_write_ipv6(packet, to, forward)
			    : nat_write_ipv4(packet, to, address_delta, forward);
}

/* Where an error goes that travels with a half, and whom it comes from. */
static __always_inline void quote_error_target(struct tuple *to, const struct packet *packet,
					       const struct packet *quote, const struct flow_view *view)
{
	bool translated = !address_equal(&view->to.source, &quote->key.tuple.destination);

	to->source = translated ? view->to.source : packet->key.tuple.source;
	to->destination = view->to.destination;
	to->source_port = 0;
	to->destination_port = 0;
}

/*
 * Makes the error one about what its receiver has sent. `forward`: this node is a router on its way. False: it must
 * be dropped.
 */
static __always_inline bool quote_translate(struct packet *packet, struct packet *quote, const struct flow_view *view,
					    bool forward)
{
	struct tuple to, quoted;
	__u64 delta;

	quote_error_target(&to, packet, quote, view);
	tuple_reverse(&quoted, &view->to);
	if (!quote_rewrite(quote, &quoted, &delta) || !quote_rewrite_error(packet, &to, delta, forward)) {
		count(drop_rewrite_failed);
		return false;
	}
	count(icmp_translated);
	return true;
}

/* An error is not answered by another. */
static __always_inline int quote_drop_undeliverable(void)
{
	count(drop_icmp_undeliverable);
	return PACKET_DROP;
}

#endif
