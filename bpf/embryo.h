/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flows that are not established yet, from the packet after the one that has opened them on. */
#ifndef WEIR_EMBRYO_H
#define WEIR_EMBRYO_H

#include "flow.h"
#include "health.h"

enum flow_result {
	FLOW_MISS = 0,
	FLOW_HIT,
	FLOW_RETRY,   /* its backend is silent: another one may be asked */
	FLOW_REFUSED, /* its flow cannot be established: no room */
};

/* Puts back the reverse half of an embryo that eviction took. False: another flow has the tuple by now. */
static __always_inline bool flow_rebuild(const struct packet *packet, const struct flow *forward,
					 const struct flow_key *other)
{
	struct scratch *scratch = scratch_find();
	struct flow *half;

	if (!scratch)
		return false;
	scratch->reverse = *other;
	scratch->last_resort = false;
	half = &scratch->half;
	*half = *forward;
	half->seal = flow_seal(other);
	tuple_reverse(&half->to, &packet->key.tuple);
	half->half = FLOW_HALF_REVERSE;
	half->state = FLOW_UNANSWERED;
	half->last_seen = flow_now();
	half->hop.mtu = 0; /* the other way's */
	if (!flow_claim())
		return false;
	count(flow_reverse_rebuilt);
	return true;
}

/* Says that a flow is in the table, whose embryos are about to go. */
static __always_inline void flow_note_move(void)
{
	__u32 zero = 0, now = flow_now();
	__u32 *last = bpf_map_lookup_elem(&last_move, &zero);

	if (last && *last != now)
		*last = now;
}

/*
 * A packet that has found no flow, and then no embryo, or half of one. Another CPU may have moved the flow between:
 * the first packets of a pod come by several. So where one has been moved since this packet came, it looks again.
 * SYNs do not: theirs are not established yet.
 */
static __noinline enum flow_result flow_moved(const struct packet *packet, struct flow_view *view)
{
	__u32 zero = 0, *last;
	struct flow *flow;

	if (packet_is_syn(packet))
		return FLOW_MISS;
	last = bpf_map_lookup_elem(&last_move, &zero);
	if (!last || (__s32)(*last - packet->now) < 0)
		return FLOW_MISS;
	flow = flow_table_lookup(&packet->key);
	return flow && flow_read(flow, &packet->key, view) ? FLOW_HIT : FLOW_MISS;
}

/*
 * Moves a pair of embryos to the flow table, reverse first. Returns the forward half there. Another CPU may be doing
 * the same: what it has put there stays, as an update would let lookups miss it for a moment.
 */
static __always_inline struct flow *flow_establish(const struct flow_key *key, struct flow *forward,
						   const struct flow_key *other, struct flow *reverse)
{
	struct scratch *scratch = scratch_find();
	struct flow *half;
	int error;

	if (!scratch)
		return NULL;
	half = &scratch->half;
	*half = *reverse;
	half->state = FLOW_ESTABLISHED;
	error = flow_table_update(other, half, BPF_NOEXIST);
	if (error && error != -EEXIST)
		return NULL;
	*half = *forward;
	half->state = FLOW_ESTABLISHED;
	error = flow_table_update(key, half, BPF_NOEXIST);
	if (error && error != -EEXIST) {
		flow_table_delete(other);
		return NULL;
	}
	flow_note_move();
	bpf_map_delete_elem(&embryos, key);
	bpf_map_delete_elem(&embryos, other);
	if (!error)
		count(flow_established);
	return flow_table_lookup(key);
}

/* Half of the second that clients wait at least before they send a SYN again. */
#define SYN_RETRY_JIFFIES (jiffies_per_second / 2)

/* Whether a SYN of the client is one sent again, because nobody has answered the last one. */
static __always_inline bool embryo_is_silent(const struct packet *packet, const struct flow *forward,
					     const struct flow *reverse)
{
	/* Another CPU may have seen a packet of it since this one came. */
	return reverse->state == FLOW_UNANSWERED &&
	       (__s32)(packet->now - forward->last_seen) >= (__s32)SYN_RETRY_JIFFIES;
}

/* Moves an embryo that has no reverse half to the flow table. Returns it there. */
static __always_inline struct flow *flow_establish_alone(const struct flow_key *key, const struct flow *forward)
{
	struct scratch *scratch = scratch_find();
	int error;

	if (!scratch)
		return NULL;
	scratch->half = *forward;
	scratch->half.state = FLOW_ESTABLISHED;
	error = flow_table_update(key, &scratch->half, BPF_NOEXIST);
	if (error && error != -EEXIST)
		return NULL;
	flow_note_move();
	bpf_map_delete_elem(&embryos, key);
	if (!error)
		count(flow_established);
	return flow_table_lookup(key);
}

/*
 * A packet from the client of an embryo whose backend answers elsewhere. Of the answer it is known when the client
 * says more than that it wants one.
 */
static __always_inline enum flow_result embryo_tunnel(const struct packet *packet, struct flow *embryo,
						      struct flow_view *view)
{
	if (packet_is_syn(packet)) {
		if (embryo->state >= FLOW_CLOSING)
			return FLOW_MISS;
		return (__s32)(packet->now - embryo->last_seen) < (__s32)SYN_RETRY_JIFFIES ? FLOW_HIT : FLOW_RETRY;
	}
	if (embryo->state >= FLOW_CLOSING || packet->tcp_flags & TCP_RST)
		return FLOW_HIT;
	view->flow = flow_establish_alone(&packet->key, embryo);
	if (!view->flow) {
		count(drop_flow_table_full);
		return FLOW_REFUSED;
	}
	backend_answered(view->flow->backend, view->flow->generation);
	return FLOW_HIT;
}

/* A packet from the client of an embryo. */
static __always_inline enum flow_result embryo_forward(const struct packet *packet, struct flow *embryo,
						       struct flow_view *view)
{
	const struct flow_key *key = &packet->key;
	struct flow_key other;
	struct flow *reverse;

	if (view->action == FLOW_TUNNEL)
		return embryo_tunnel(packet, embryo, view);
	/* It has ended, and is nothing to be rebuilt: the SYN begins anew. */
	if (packet_is_syn(packet) && embryo->state >= FLOW_CLOSING)
		return FLOW_MISS;
	flow_other_key(&other, key, &embryo->to);
	reverse = bpf_map_lookup_elem(&embryos, &other);
	/* Evicted; and another flow may have got its place. */
	if (!reverse || !tuple_is_reverse(&reverse->to, &key->tuple))
		return flow_rebuild(packet, embryo, &other) ? FLOW_HIT : FLOW_MISS;
	if (packet_is_syn(packet)) {
		if (reverse->state >= FLOW_CLOSING)
			return FLOW_MISS;
		return embryo_is_silent(packet, embryo, reverse) ? FLOW_RETRY : FLOW_HIT;
	}
	if (reverse->state != FLOW_ANSWERED || embryo->state >= FLOW_CLOSING || packet->tcp_flags & TCP_RST)
		return FLOW_HIT;
	view->flow = flow_establish(key, embryo, &other, reverse);
	if (view->flow)
		return FLOW_HIT;
	count(drop_flow_table_full);
	return FLOW_REFUSED;
}

/* The forward half of an embryo as it is: nothing becomes of it. */
static __always_inline bool flow_again(const struct packet *packet, struct flow_view *view)
{
	struct flow *embryo = bpf_map_lookup_elem(&embryos, &packet->key);

	return embryo && flow_read(embryo, &packet->key, view);
}

/*
 * Looks among the embryos. Off the hot path: once or twice in the life of a flow. Whether an answer counts the caller
 * says (try.h): not every program sees answers where they are certain to be the backend's.
 */
static __always_inline enum flow_result flow_lookup_embryo(struct packet *packet, struct flow_view *view)
{
	struct flow *embryo = bpf_map_lookup_elem(&embryos, &packet->key);
	enum flow_result result = FLOW_MISS;

	if (embryo && flow_read(embryo, &packet->key, view))
		result = view->half == FLOW_HALF_FORWARD ? embryo_forward(packet, embryo, view) : FLOW_HIT;
	return result == FLOW_MISS ? flow_moved(packet, view) : result;
}

/*
 * Looks for the flow of a packet that is of no established one; or is a fragment, which has its ports only now, so
 * that nobody has looked there yet.
 */
static __always_inline enum flow_result flow_lookup_begun(struct packet *packet, struct flow_view *view)
{
	if (!PACKET_IS_XDP && packet->fragment && flow_lookup(packet, view))
		return FLOW_HIT;
	return flow_lookup_embryo(packet, view);
}

#endif
