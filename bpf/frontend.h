/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a destination to its service, and from the service's tables to a backend. */
#ifndef WEIR_FRONTEND_H
#define WEIR_FRONTEND_H

#include "address.h"
#include "hash.h"
#include "maps.h"

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
	__u8 kind;	/* enum frontend_kind */
	bool node_port; /* on an address of the node itself, where others have sockets and flows too */
};

/* Ties a frontend's value to its key (types.h); maps.FrontendKey.Hash is the same function in Go. */
static __always_inline __u32 frontend_hash(const struct frontend_key *key)
{
	return hash_words(key, sizeof(*key), 0);
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
static __always_inline struct frontend *frontend_lookup(struct frontend_key *key, bool local, bool *node_port)
{
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, key);
	struct address address = key->address;

	*node_port = false;
	if (frontend)
		return frontend;
	frontend_key_any_address(key);
	frontend = bpf_map_lookup_elem(&frontends, key);
	if (!frontend || !(address_is_of_node(&address) || (local && address_is_loopback(&address))))
		return NULL;
	*node_port = true;
	return frontend;
}

/* What a packet or a socket asks for. */
static __always_inline void frontend_key_fill(struct frontend_key *key, const struct address *address, __be16 port,
					      __u8 protocol)
{
	key->address = *address;
	key->port = bpf_ntohs(port);
	key->protocol = protocol;
	key->pad = 0;
}

/* Changes the key to the one that matched. */
static __always_inline enum service_result service_find_once(struct frontend_key *key, bool local,
							     struct service_view *view)
{
	struct frontend *frontend = frontend_lookup(key, local, &view->node_port);
	__u32 index, target;
	__u64 value;

	if (!frontend)
		return SERVICE_NONE;
	value = *(volatile __u64 *)frontend;
	target = (__u32)value;
	index = target & FRONTEND_INDEX_MASK;
	view->kind = target >> FRONTEND_KIND_SHIFT;
	view->service = bpf_map_lookup_elem(&services, &index);
	if (!view->service || view->service->generation != ((__u32)(value >> 32) ^ frontend_hash(key)))
		return SERVICE_STALE;
	return SERVICE_FOUND;
}

/*
 * The service of a destination. `local`: a process of this host asks, for which NodePorts answer on loopback
 * addresses too; from a packet that would be an attack. The agent may be replacing it: one retry sees the new value.
 */
static __always_inline enum service_result service_find(const struct address *address, __be16 port, __u8 protocol,
							bool local, struct service_view *view)
{
	enum service_result result;
	struct frontend_key key;

	frontend_key_fill(&key, address, port, protocol);
	result = service_find_once(&key, local, view);
	if (result != SERVICE_STALE)
		return result;
	frontend_key_fill(&key, address, port, protocol);
	return service_find_once(&key, local, view);
}

/* The table of that side; how a slot of it is picked goes to `algorithm`. */
static __always_inline const struct slot_range *service_table(const struct service *service, enum side side,
							      enum algorithm *algorithm)
{
	*algorithm = side == SIDE_INSIDE ? service->inside_algorithm : service->outside_algorithm;
	return side == SIDE_INSIDE ? &service->inside : &service->outside;
}

/*
 * The backend index in a slot of the arena. 0: none. A global function: where the slot is found by a search, the
 * verifier would else follow every way that this can go.
 */
__noinline __u32 slot_backend(__u32 slot)
{
	__u32 index = slot / SLOTS_PER_BLOCK;
	struct slot_block *block = bpf_map_lookup_elem(&slots, &index);

	return block ? block->backend[slot % SLOTS_PER_BLOCK] : 0;
}

/* The backend index in a slot of a table. */
static __always_inline __u32 slot_read(const struct slot_range *range, __u32 position)
{
	return slot_backend(range->base + position);
}

static __always_inline struct backend *backend_find(__u32 index)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return backend && backend->generation ? backend : NULL;
}

#endif
