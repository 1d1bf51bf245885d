/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets of flows between this host itself and a VIP, at the node edge: host.h, node_host.h. */
#ifndef WEIR_HOST_PACKET_H
#define WEIR_HOST_PACKET_H

#include "scratch.h"

/* Leaves one to who goes on with it. Not inline: that would cost the packets of all other flows 16 ns. */
static __noinline int packet_of_host(const struct packet *packet)
{
	return scratch_save(packet) ? PACKET_OF_HOST : PACKET_DROP;
}

#endif
