/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a packet without a flow to its service, and to a backend for it. */
#ifndef WEIR_SERVICE_H
#define WEIR_SERVICE_H

#include "frontend.h"
#include "packet.h"
#include "pick.h"

/* The same on every node for the same tuple, so that equal Maglev tables give equal backends. */
static __always_inline __u32 tuple_hash(const struct tuple *tuple)
{
	const __be32 *source = address_words_const(&tuple->source);
	const __be32 *destination = address_words_const(&tuple->destination);
	__u32 hash = 0;
	int i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		HASH_STEP(hash, bpf_ntohl(source[i]));
		HASH_STEP(hash, bpf_ntohl(destination[i]));
	}
	HASH_STEP(hash, (__u32)bpf_ntohs(tuple->source_port) << 16 | bpf_ntohs(tuple->destination_port));
	return hash ^ hash >> 13;
}

/* The service a packet is for. */
static __always_inline enum service_result service_of_packet(const struct packet *packet, struct service_view *view)
{
	const struct tuple *tuple = &packet->key.tuple;

	return service_find(&tuple->destination, tuple->destination_port, packet->key.protocol, false, view);
}

/* Whether a connection's packets get the same backend on every node, and each time. */
static __always_inline bool service_picks_by_table(const struct service *service, enum side side)
{
	enum algorithm algorithm;

	service_table(service, side, &algorithm);
	return algorithm == ALGORITHM_MAGLEV;
}

/*
 * Picks a backend for a new flow; another one than `tried`, unless that is 0 or there is no other. 0: the table is
 * empty. A connection that is there goes on with the backend that it has, also where that is in quarantine here.
 */
static __always_inline __u32 service_pick(const struct packet *packet, const struct service *service, enum side side,
					  __u32 tried)
{
	const struct tuple *tuple = &packet->key.tuple;
	const struct slot_range *table;
	enum algorithm algorithm;
	__u32 backend;

	if (tried)
		return pick_other(service, side, tried);
	backend = pick_backend(service, side, &tuple->source, tuple_hash(tuple));
	if (packet_is_midstream(packet))
		return backend;
	table = service_table(service, side, &algorithm);
	return pick_healthy(table->base, table->count, backend);
}

#endif
