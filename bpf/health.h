/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which backends are silent. When three clients in a row, each at another address, have had to send a SYN to a
 * backend again, with no answer of it to anybody between, it is in quarantine: new flows go to others, where there
 * are any. When that time is over one flow is let through, and the quarantine begins anew; an answer ends it.
 *
 * Nothing is locked: two programs that write at the same moment may lose a client, and nothing else.
 */
#ifndef WEIR_HEALTH_H
#define WEIR_HEALTH_H

#include "config.h"
#include "stats.h"

#define NANOSECONDS_PER_SECOND 1000000000ULL

/* Of CLOCK_MONOTONIC, as the CLI reads it. 32 ns: only where there is something to compare with. */
static __always_inline __u32 health_now(void)
{
	return bpf_ktime_get_ns() / NANOSECONDS_PER_SECOND;
}

static __always_inline struct health *health_find(__u32 backend)
{
	return quarantine_seconds ? bpf_map_lookup_elem(&backend_health, &backend) : NULL;
}

/* Whether new flows shall go elsewhere. What is left of the index's last owner does not count. */
__noinline int backend_is_quarantined(__u32 backend)
{
	struct health *health = health_find(backend);
	struct backend *record;

	if (!health || !health->until || health_now() >= health->until)
		return 0;
	record = bpf_map_lookup_elem(&backends, &backend);
	return record && record->generation == health->generation;
}

/* Adds a client to those that have had no answer. True: they are enough. */
static __always_inline bool health_add_client(struct health *health, __u32 client)
{
	int i, free = HEALTH_CLIENTS;

#pragma unroll
	for (i = HEALTH_CLIENTS - 1; i >= 0; i--) {
		if (health->clients[i] == client)
			return false;
		if (!health->clients[i])
			free = i;
	}
	if (free < HEALTH_CLIENTS)
		health->clients[free] = client;
	return free >= HEALTH_CLIENTS - 1;
}

/* Notes that a client has had no answer. `client` is a hash of its address, and not 0. */
__noinline int backend_was_silent(__u32 backend, __u32 generation, __u32 client)
{
	struct health *health = health_find(backend);

	if (!health)
		return 0;
	if (health->generation != generation) {
		__builtin_memset(health, 0, sizeof(*health));
		health->generation = generation;
	}
	if (health->until || !health_add_client(health, client))
		return 0;
	health->until = health_now() + quarantine_seconds;
	count(backend_quarantined);
	return 0;
}

static __always_inline bool health_is_clean(const struct health *health)
{
	return !(health->until | health->clients[0] | health->clients[1] | health->clients[2]);
}

/* Notes that a backend has answered somebody. Written only where that changes something: answers are many. */
static __always_inline void backend_answered(__u32 backend, __u32 generation)
{
	struct health *health = health_find(backend);

	if (!health || health->generation != generation || health_is_clean(health))
		return;
	health->until = 0;
	__builtin_memset(health->clients, 0, sizeof(health->clients));
}

/* Notes that a flow is opened to a backend: where its quarantine is over, the next wait for what becomes of it. */
static __always_inline void backend_is_asked(__u32 backend, __u32 generation)
{
	struct health *health = health_find(backend);

	if (health && health->until && health->generation == generation && health_now() >= health->until)
		health->until = health_now() + quarantine_seconds;
}

#endif
