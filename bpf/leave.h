/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Leaving alone what is not understood, and counting it. */
#ifndef WEIR_LEAVE_H
#define WEIR_LEAVE_H

#include "packet.h"
#include "scratch.h"
#include "stats.h"

/*
 * Adds one to a named counter of packets that are left alone, at tc: XDP passes up unchanged what it leaves alone,
 * and the program at tc of the same device finds the same.
 */
#define count_left(name)             \
	do {                         \
		if (!PACKET_IS_XDP)  \
			count(name); \
	} while (0)

/* ICMP, and fragments: at tc other functions go on with them, as `next` says. XDP leaves them to tc. */
static __always_inline int packet_leave_to_tc(const struct packet *packet, int next)
{
	if (PACKET_IS_XDP)
		return PACKET_PASS;
	return scratch_save(packet) ? next : PACKET_DROP;
}

static __always_inline int fragment_leave(void)
{
	count_left(pass_fragment);
	return PACKET_PASS;
}

/* Whether a packet to a frontend, of no flow, is a fragment without ports: the first has opened none. */
static __always_inline bool fragment_is_stray(const struct packet *packet)
{
	if (PACKET_IS_XDP || packet->fragment != FRAGMENT_LATER)
		return false;
	count_left(pass_fragment);
	return true;
}

/* Whether more of a packet can be read now than when it was parsed. */
static __always_inline bool packet_has_more(const struct packet *packet, enum parse_result result)
{
	return result == PARSE_TRUNCATED && packet_make_linear(packet->context);
}

static __always_inline int packet_leave(const struct packet *packet, enum parse_result result)
{
	if (packet_has_more(packet, result))
		return PACKET_AGAIN;
	if (result == PARSE_ICMP)
		return packet_leave_to_tc(packet, PACKET_ICMP);
	if (result == PARSE_FRAGMENT)
		return packet_leave_to_tc(packet, PACKET_FRAGMENT);
	if (result == PARSE_TRUNCATED || result == PARSE_MALFORMED)
		count_left(pass_malformed);
	else if (result == PARSE_EXTENSION)
		count_left(pass_extension);
	return PACKET_PASS;
}

#endif
