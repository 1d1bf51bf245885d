/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Leaving alone what is not understood, and counting it. */
#ifndef WEIR_LEAVE_H
#define WEIR_LEAVE_H

#include "packet.h"
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

static __always_inline int packet_leave(enum parse_result result)
{
	if (result == PARSE_TRUNCATED || result == PARSE_MALFORMED)
		count_left(pass_malformed);
	else if (result == PARSE_FRAGMENT)
		count_left(pass_fragment);
	else if (result == PARSE_EXTENSION)
		count_left(pass_extension);
	return PACKET_PASS;
}

#endif
