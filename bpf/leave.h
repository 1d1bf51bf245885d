/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Leaving alone what is not understood, and counting it. */
#ifndef WEIR_LEAVE_H
#define WEIR_LEAVE_H

#include "packet.h"
#include "stats.h"

static __always_inline int packet_leave(enum parse_result result)
{
	if (result == PARSE_TRUNCATED || result == PARSE_MALFORMED)
		count(pass_malformed);
	else if (result == PARSE_FRAGMENT)
		count(pass_fragment);
	else if (result == PARSE_EXTENSION)
		count(pass_extension);
	return PACKET_PASS;
}

#endif
