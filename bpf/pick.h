/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which backend of a service a new flow gets: the one that its client has had, where the service has affinity,
 * else one of the table, by the service's algorithm. The same at every edge.
 *
 * Global functions, so that the verifier checks them once. They take numbers alone: a process at the socket edge may
 * be preempted by another, so there is no scratch to talk through.
 */
#ifndef WEIR_PICK_H
#define WEIR_PICK_H

#include "config.h"
#include "frontend.h"
#include "health.h"
#include "load.h"
#include "stats.h"

/* Enough to find one of 16 million. */
#define MEMBER_SEARCH_STEPS 24

static __always_inline __u64 address_high(const struct address *address)
{
	const __be32 *words = address_words_const(address);

	return (__u64)words[0] << 32 | words[1];
}

static __always_inline __u64 address_low(const struct address *address)
{
	const __be32 *words = address_words_const(address);

	return (__u64)words[2] << 32 | words[3];
}

/* The same on every node, as tuple_hash(). */
static __always_inline __u32 address_hash(const struct address *address)
{
	const __be32 *words = address_words_const(address);
	__u32 hash = 0;
	int i;

#pragma unroll
	for (i = 0; i < 4; i++)
		HASH_STEP(hash, bpf_ntohl(words[i]));
	return hash ^ hash >> 13;
}

static __always_inline void address_set_halves(struct address *address, __u64 high, __u64 low)
{
	__be32 *words = address_words(address);

	words[0] = high >> 32;
	words[1] = high;
	words[2] = low >> 32;
	words[3] = low;
}

static __always_inline void affinity_key_fill(struct affinity_key *key, __u64 group, __u64 high, __u64 low)
{
	key->group = group;
	address_set_halves(&key->client, high, low);
}

/* Ties a value to its key, as flow_seal() does. */
static __always_inline __u32 affinity_seal(const struct affinity_key *key)
{
	return address_hash(&key->client) ^ (__u32)key->group ^ (__u32)(key->group >> 32);
}

static __always_inline __u32 affinity_now(void)
{
	return bpf_jiffies64() / jiffies_per_second;
}

/* The backend index that a client is remembered to have; 0: none, or it was too long ago, or is another's by now. */
__noinline int affinity_find(__u64 group, __u64 client_high, __u64 client_low, __u32 timeout)
{
	struct affinity_entry *found, copy;
	struct affinity_key key;
	struct backend *backend;

	affinity_key_fill(&key, group, client_high, client_low);
	found = bpf_map_lookup_elem(&affinity, &key);
	if (!found)
		return 0;
	copy = *found;
	barrier();
	if (*(volatile const __u32 *)&found->seal != affinity_seal(&key) || affinity_now() - copy.seconds > timeout)
		return 0;
	backend = backend_find(copy.backend);
	return backend && backend->generation == copy.generation ? copy.backend : 0;
}

/* Whether a list of backend indices, in their order, has that one. */
__noinline int members_have(__u32 base, __u32 slots_count, __u32 backend)
{
	struct slot_range range = { .base = base, .count = slots_count };
	__u32 low = 0, high = slots_count, middle, found;
	int i;

	for (i = 0; i < MEMBER_SEARCH_STEPS && low < high; i++) {
		middle = low + (high - low) / 2;
		found = slot_read(&range, middle);
		if (found == backend)
			return 1;
		if (found < backend)
			low = middle + 1;
		else
			high = middle;
	}
	return 0;
}

/* Notes that a flow of the client has got a backend: the next one within the timeout gets the same. */
__noinline int affinity_remember(__u64 group, __u64 client_high, __u64 client_low, __u32 backend, __u32 generation)
{
	struct affinity_entry fresh = { .backend = backend, .generation = generation, .seconds = affinity_now() };
	struct affinity_entry *known;
	struct affinity_key key;

	affinity_key_fill(&key, group, client_high, client_low);
	known = bpf_map_lookup_elem(&affinity, &key);
	if (known && known->backend == backend && known->generation == generation) {
		known->seconds = fresh.seconds;
		count(affinity_kept);
		return 0;
	}
	fresh.seal = affinity_seal(&key);
	bpf_map_update_elem(&affinity, &key, &fresh, BPF_ANY);
	if (known)
		count(affinity_moved);
	else
		count(affinity_new);
	return 0;
}

/* Of two slots of a table, taken by chance, the one whose backend is less busy. */
__noinline int slot_less_busy(__u32 base, __u32 slots_count)
{
	struct slot_range range = { .base = base, .count = slots_count };
	__u32 position, first, second;

	if (!slots_count)
		return 0;
	position = bpf_get_prandom_u32() % slots_count;
	first = slot_read(&range, position);
	if (slots_count == 1)
		return first;
	position += 1 + bpf_get_prandom_u32() % (slots_count - 1);
	second = slot_read(&range, position < slots_count ? position : position - slots_count);
	return load_of(second) < load_of(first) ? second : first;
}

/* Whether the service has affinity, and it is known who the client is. */
static __always_inline bool service_knows(const struct service *service, const struct address *client)
{
	return service->affinity_timeout && !address_is_zero(client);
}

/* The backend that the client has had of this service, if it is still to be had on that side; else 0. */
static __always_inline __u32 pick_remembered(const struct service *service, enum side side,
					     const struct address *client)
{
	const struct slot_range *members = side == SIDE_INSIDE ? &service->inside_members : &service->outside_members;
	__u32 backend = affinity_find(service->affinity_group, address_high(client), address_low(client),
				      service->affinity_timeout);

	return backend && members_have(members->base, members->count, backend) ? backend : 0;
}

/*
 * Picks a backend for a new flow of that client. `hash` is what Maglev goes by, but where the service has affinity:
 * there it is the client's address, so that nodes agree which have not met the client. 0: the table is empty.
 */
static __always_inline __u32 pick_backend(const struct service *service, enum side side, const struct address *client,
					  __u32 hash)
{
	enum algorithm algorithm;
	const struct slot_range *table = service_table(service, side, &algorithm);
	__u32 slots_count = table->count, backend;

	if (!slots_count)
		return 0;
	if (service_knows(service, client)) {
		backend = pick_remembered(service, side, client);
		if (backend)
			return backend;
		hash = address_hash(client);
	}
	if (algorithm == ALGORITHM_LEAST_CONNECTIONS)
		return slot_less_busy(table->base, slots_count);
	if (algorithm != ALGORITHM_MAGLEV)
		hash = bpf_get_prandom_u32();
	return slot_read(table, hash % slots_count);
}

/* Slots that are looked at for another backend: enough also where the first one has most of the weight. */
#define OTHER_PROBES 64

/* A backend of the table other than `first`, by chance, and in no quarantine if there is such; that one, if none is
 * found. */
__noinline int pick_other_of(__u32 base, __u32 slots_count, __u32 first)
{
	struct slot_range table = { .base = base, .count = slots_count };
	__u32 backend, other = first;
	int i;

	for (i = 0; i < OTHER_PROBES && slots_count; i++) {
		backend = slot_read(&table, bpf_get_prandom_u32() % slots_count);
		if (!backend || backend == first)
			continue;
		if (!backend_is_quarantined(backend))
			return backend;
		other = backend;
	}
	return other;
}

/* That backend of the table, or another one where it is in quarantine and the other is not. */
__noinline int pick_healthy(__u32 base, __u32 slots_count, __u32 backend)
{
	__u32 other;

	if (!backend_is_quarantined(backend))
		return backend;
	other = pick_other_of(base, slots_count, backend);
	return backend_is_quarantined(other) ? backend : other;
}

/*
 * Picks another backend than the one that a client has tried in vain, whatever the algorithm, and whether it is the
 * client's by affinity. 0: the table is empty.
 */
static __always_inline __u32 pick_other(const struct service *service, enum side side, __u32 tried)
{
	enum algorithm algorithm;
	const struct slot_range *table = service_table(service, side, &algorithm);

	return table->count ? pick_other_of(table->base, table->count, tried) : 0;
}

#endif
