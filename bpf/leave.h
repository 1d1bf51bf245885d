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

/* A packet without ports. At tc an ICMP error about a packet of ours is looked for; XDP leaves that to tc. */
static __always_inline int packet_leave_icmp(const struct packet *packet)
{
	if (PACKET_IS_XDP)
		return PACKET_PASS;
	return scratch_save(packet) ? PACKET_ICMP : PACKET_DROP;
}

static __always_inline int packet_leave(const struct packet *packet, enum parse_result result)
{
	if (result == PARSE_ICMP)
		return packet_leave_icmp(packet);
	if (result == PARSE_TRUNCATED || result == PARSE_MALFORMED)
		count_left(pass_malformed);
	else if (result == PARSE_FRAGMENT)
		count_left(pass_fragment);
	else if (result == PARSE_EXTENSION)
		count_left(pass_extension);
	return PACKET_PASS;
}

#endif
