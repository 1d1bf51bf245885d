/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that may not open a flow, at the node and pod edges. */
#ifndef WEIR_ACCESS_PACKET_H
#define WEIR_ACCESS_PACKET_H

#include "access.h"
#include "packet.h"
#include "stats.h"

/* Counts the packet if its source may not use the frontend. */
static __always_inline bool packet_is_admitted(const struct packet *packet, const struct service_view *view)
{
	if (source_is_admitted(view, &packet->key.tuple.source))
		return true;
	count(drop_source_denied);
	return false;
}

#endif
