/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * masqueradeAll: who asks a ClusterIP reaches the backend from an address of the node. The stack does that, behind
 * all policies, which so see who asks; conntrack turns the answers back. Programs only mark the packets that begin a
 * flow, and translate the destination as ever.
 */
#ifndef WEIR_MASQUERADE_H
#define WEIR_MASQUERADE_H

#include "config.h"
#include "service.h"

/* False: the packet has to be marked, and this hook has no marks. Of no established flow. */
static __always_inline bool packet_masquerade(const struct packet *packet)
{
	struct service_view service;

	if (!masquerade_mark || service_of_packet(packet, &service) != SERVICE_FOUND ||
	    service.kind != FRONTEND_CLUSTER_IP)
		return true;
	return packet_set_mark(packet->context, masquerade_mark);
}

#endif
