/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a packet without a flow to its service, and from the service to a backend. */
#ifndef WEIR_SERVICE_H
#define WEIR_SERVICE_H

#include "packet.h"
#include "stats.h"

enum side {
	SIDE_INSIDE,  /* traffic of this node's pods and processes */
	SIDE_OUTSIDE, /* traffic that arrives at the node edge */
};

enum service_result {
	SERVICE_NONE = 0, /* no frontend */
	SERVICE_FOUND,
	SERVICE_STALE, /* frontend and record disagree, twice */
};

/* The frontend a packet was sent to. */
struct service_view {
	struct service *service;
	bool node_port; /* on an address of the node itself, where others have sockets and flows too */
};

#define HASH_STEP(hash, word)                        \
	do {                                         \
		hash = (hash ^ (word)) * 0x9e3779b1; \
		hash ^= hash >> 15;                  \
	} while (0)

/* Ties a frontend's value to its key (types.h); maps.FrontendKey.Hash is the same function in Go. */
static __always_inline __u32 frontend_hash(const struct frontend_key *key)
{
	const __u32 *words = (const __u32 *)key;
	__u32 hash = 0;
	int i;

#pragma unroll
	for (i = 0; i < (int)(sizeof(*key) / sizeof(*words)); i++)
		HASH_STEP(hash, words[i]);
	return hash;
}

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

static __always_inline bool address_is_of_node(const struct address *address)
{
	return bpf_map_lookup_elem(&node_addrs, address) != NULL;
}

/* Turns the key into the NodePort's that would match it. */
static __always_inline void frontend_key_any_address(struct frontend_key *key)
{
	__be32 *words = address_words(&key->address);

	words[0] = 0;
	words[1] = 0;
	words[2] = address_is_ipv4(&key->address) ? IPV4_MAPPED_PREFIX : 0;
	words[3] = 0;
}

/* Finds the value of the key, or of its port on any address of the node; changes the key to what matched. */
static __always_inline struct frontend *frontend_lookup(struct frontend_key *key, bool *node_port)
{
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, key);
	struct address address = key->address;

	*node_port = false;
	if (frontend)
		return frontend;
	frontend_key_any_address(key);
	frontend = bpf_map_lookup_elem(&frontends, key);
	if (!frontend || !address_is_of_node(&address))
		return NULL;
	*node_port = true;
	return frontend;
}

static __always_inline enum service_result service_find_once(const struct packet *packet, struct service_view *view)
{
	struct frontend_key key = {
		.address = packet->key.tuple.destination,
		.port = bpf_ntohs(packet->key.tuple.destination_port),
		.protocol = packet->key.protocol,
	};
	struct frontend *frontend = frontend_lookup(&key, &view->node_port);
	__u64 value;
	__u32 index;

	if (!frontend)
		return SERVICE_NONE;
	value = *(volatile __u64 *)frontend;
	index = (__u32)value;
	view->service = bpf_map_lookup_elem(&services, &index);
	if (!view->service || view->service->generation != ((__u32)(value >> 32) ^ frontend_hash(&key)))
		return SERVICE_STALE;
	return SERVICE_FOUND;
}

/* The service a packet is for. The agent may be replacing it: one retry sees the new value. */
static __always_inline enum service_result service_find(const struct packet *packet, struct service_view *view)
{
	enum service_result result = service_find_once(packet, view);

	return result == SERVICE_STALE ? service_find_once(packet, view) : result;
}

static __always_inline __u32 slot_pick(const struct packet *packet, enum algorithm algorithm, __u32 slots_count)
{
	if (algorithm == ALGORITHM_MAGLEV)
		return tuple_hash(&packet->key.tuple) % slots_count;
	return bpf_get_prandom_u32() % slots_count;
}

/* Picks a backend for a new flow. 0: the table is empty. */
static __always_inline __u32 service_pick(const struct packet *packet, const struct service *service, enum side side)
{
	const struct slot_range *range = side == SIDE_INSIDE ? &service->inside : &service->outside;
	enum algorithm algorithm = side == SIDE_INSIDE ? service->inside_algorithm : service->outside_algorithm;
	__u32 slots_count = range->count;
	struct slot_block *block;
	__u32 slot, index;

	if (!slots_count)
		return 0;
	slot = range->base + slot_pick(packet, algorithm, slots_count);
	index = slot / SLOTS_PER_BLOCK;
	block = bpf_map_lookup_elem(&slots, &index);
	return block ? block->backend[slot % SLOTS_PER_BLOCK] : 0;
}

static __always_inline struct backend *backend_find(__u32 index)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return backend && backend->generation ? backend : NULL;
}

#endif
