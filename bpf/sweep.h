/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a sweep does with one half of a flow. */
#ifndef WEIR_SWEEP_H
#define WEIR_SWEEP_H

#include <stdbool.h>
#include <linux/in.h>

#include "flow_table.h"
#include "load.h"
#include "maps.h"
#include "tuple.h"

/*
 * A piece of the walk ends after that many elements at the latest, and at every milestone: an entry of no flow,
 * which the agent puts into the tables here and there. Without them a walk over empty buckets, of which the program
 * knows nothing, would be one long piece.
 */
#define SWEEP_PIECE 512

/* What is swept. */
enum sweep_table {
	SWEEP_EMBRYOS,
	SWEEP_FLOWS,
};

/* The parts of the kernel's iterator context that we read, found by BTF (kernel/bpf/map_iter.c). */
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	void *map;
	void *key;
	void *value;
} __attribute__((preserve_access_index));

static __always_inline struct flow *sweep_lookup(enum sweep_table table, const struct flow_key *key)
{
	return table == SWEEP_EMBRYOS ? bpf_map_lookup_elem(&embryos, key) : flow_table_lookup(key);
}

static __always_inline void sweep_delete(enum sweep_table table, const struct flow_key *key)
{
	if (table == SWEEP_EMBRYOS)
		bpf_map_delete_elem(&embryos, key);
	else
		flow_table_delete(key);
}

static __always_inline void usage_note(void *usage, __u32 index, __u32 epoch)
{
	__u32 *last = bpf_map_lookup_elem(usage, &index);

	if (last)
		*last = epoch;
}

static __always_inline bool sweep_is_closing(const struct flow *flow, const struct flow *peer)
{
	return flow->state >= FLOW_CLOSING || (peer && peer->state >= FLOW_CLOSING);
}

/*
 * How long the flow of this half may be idle, in jiffies. SCTP that one side has shut down is as good as over, as
 * with conntrack: there are no associations closed by half, and one that is used asks each 30 seconds whether its
 * peer is there (RFC 9260, 8.3).
 */
static __always_inline __u32 sweep_timeout(const struct sweep_settings *settings, const struct flow *flow,
					   const struct flow *peer, __u8 protocol)
{
	if (flow->state < FLOW_ESTABLISHED)
		return settings->timeout_unanswered;
	if (protocol == IPPROTO_SCTP)
		return sweep_is_closing(flow, peer) ? settings->timeout_tcp_closed : settings->timeout_sctp;
	if (protocol != IPPROTO_TCP)
		return settings->timeout_udp;
	if (flow_is_foreign(flow))
		return flow->state >= FLOW_CLOSING ? settings->timeout_tcp_closed : settings->timeout_foreign;
	if (flow->state == FLOW_CLOSED || (peer && peer->state == FLOW_CLOSED))
		return settings->timeout_tcp_closed;
	if (flow->action == FLOW_TUNNEL) /* its backend closes where we do not see it */
		return flow->state == FLOW_CLOSING ? settings->timeout_tcp_half_closed : settings->timeout_tcp;
	if (flow->state == FLOW_CLOSING && (!peer || peer->state == FLOW_CLOSING))
		return settings->timeout_tcp_closed;
	if (flow->state == FLOW_CLOSING || (peer && peer->state == FLOW_CLOSING))
		return settings->timeout_tcp_half_closed;
	return settings->timeout_tcp;
}

static __always_inline __u32 shorter(__u32 a, __u32 b)
{
	return a < b ? a : b;
}

static __always_inline __u32 sweep_shortest(const struct sweep_settings *settings)
{
	__u32 tcp = shorter(settings->timeout_tcp, settings->timeout_tcp_half_closed);
	__u32 over = shorter(settings->timeout_unanswered, settings->timeout_tcp_closed);
	__u32 others = shorter(settings->timeout_sctp, shorter(settings->timeout_udp, settings->timeout_foreign));

	return shorter(tcp, shorter(over, others));
}

/*
 * Whether the flow has been idle too long: as long as its younger half. The other half is looked up only
 * where this one alone would not keep the flow.
 */
static __always_inline bool sweep_expired(const struct sweep_settings *settings, enum sweep_table table,
					  const struct flow_key *other, const struct flow *flow)
{
	__u32 now = bpf_jiffies64();
	__u32 idle = now - flow->last_seen;
	struct flow *peer;

	if ((__s32)idle < 0 || idle < sweep_shortest(settings))
		return false;
	peer = flow_is_foreign(flow) ? NULL : sweep_lookup(table, other);
	if (peer && now - peer->last_seen < idle)
		idle = now - peer->last_seen;
	return idle >= sweep_timeout(settings, flow, peer, other->protocol);
}

/* Whether the flow's backend has left the service, which was to end its flows then. */
static __always_inline bool sweep_ends(const struct sweep_settings *settings, const struct flow *flow)
{
	struct ending_key key = { flow->service, flow->backend, flow->generation };
	struct ending *ending;

	if (!settings->endings)
		return false;
	ending = bpf_map_lookup_elem(&endings, &key);
	if (!ending) {
		key.service = 0;
		ending = bpf_map_lookup_elem(&endings, &key);
	}
	return ending && ending->due <= bpf_ktime_get_ns();
}

/* An established connection has sides to be told; anything else is forgotten, and begins anew. */
static __always_inline bool sweep_is_connection(enum sweep_table table, const struct flow_key *key)
{
	return table == SWEEP_FLOWS && key->protocol != IPPROTO_UDP;
}

/* Marks one half of a connection, for its client to be told. The other half gets its turn. */
static __always_inline void sweep_end_connection(const struct flow_key *key, struct flow *flow)
{
	if (*(volatile const __u32 *)&flow->seal != flow_seal(key))
		return; /* recycled meanwhile */
	flow->state = FLOW_CLOSED;
	if (flow->half == FLOW_HALF_FORWARD)
		flow->action |= FLOW_ENDED;
}

static __always_inline void sweep_remove(enum sweep_table table, const struct flow_key *key,
					 const struct flow_key *other, const struct flow *flow)
{
	bool foreign = flow_is_foreign(flow);

	sweep_delete(table, key);
	if (!foreign)
		sweep_delete(table, other);
}

/* A milestone's key is of no protocol (maps/milestones.go). */
static __always_inline bool sweep_is_milestone(const struct flow_key *key)
{
	return !key->protocol;
}

/* Ends the piece with this element, where it should: a read of the iterator ends when it has got a byte. */
static __always_inline void sweep_pause(const struct bpf_iter_meta *meta, const struct flow_key *key)
{
	if (sweep_is_milestone(key) || (meta->seq_num && meta->seq_num % SWEEP_PIECE == 0))
		bpf_seq_write(meta->seq, "", 1);
}

/* One element of a table. */
static __always_inline int sweep_element(struct bpf_iter_meta *meta, enum sweep_table table,
					 const struct flow_key *key, struct flow *flow)
{
	struct sweep_settings *settings;
	struct flow_key other;
	struct tuple to;
	__u32 zero = 0;
	bool ends;

	sweep_pause(meta, key);
	settings = bpf_map_lookup_elem(&sweep_config, &zero);
	if (!settings || sweep_is_milestone(key))
		return 0;
	to = flow->to;
	flow_other_key(&other, key, &to);
	ends = sweep_ends(settings, flow);
	if (sweep_expired(settings, table, &other, flow) || (ends && !sweep_is_connection(table, key))) {
		sweep_remove(table, key, &other, flow);
		return 0;
	}
	if (ends)
		sweep_end_connection(key, flow);
	if (flow_is_foreign(flow))
		return 0;
	usage_note(&service_usage, flow->service, settings->epoch);
	usage_note(&backend_usage, flow->backend, settings->epoch);
	if (flow->half == FLOW_HALF_FORWARD && flow->state < FLOW_CLOSING)
		load_count(flow->backend);
	return 0;
}

#endif
