/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that no frontend is for, at the node and pod edges. */
#ifndef WEIR_CLUSTER_IP_PACKET_H
#define WEIR_CLUSTER_IP_PACKET_H

#include "cluster_ip.h"
#include "packet.h"
#include "stats.h"
#include "straight.h"

/* Only what would open a flow is refused: of another packet of a connection, somebody else may know the connection.
 */
static __always_inline int packet_unclaimed(struct packet *packet, struct device *device)
{
	const struct tuple *tuple = &packet->key.tuple;

	if (packet_is_midstream(packet) || !tuple_is_of_hosts(tuple))
		return PACKET_PASS;
	switch (cluster_ip_find(&tuple->destination)) {
	case CLUSTER_IP_ALLOCATED:
		return reject(packet, device);
	case CLUSTER_IP_UNALLOCATED:
		count(drop_unallocated);
		return PACKET_DROP;
	default:
		if (packet_is_syn(packet))
			straight_clear_way();
		return PACKET_PASS;
	}
}

#endif
