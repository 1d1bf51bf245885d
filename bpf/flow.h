/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows: with embryo.h and try.h the only code that touches the flow table (flow_table.h) and the map `embryos`.
 *
 * A flow is a pair of entries, forward and reverse, each found by the tuple its packets arrive with. It is
 * born as a pair of embryos; the client's first packet after the backend's answer moves both to the flow
 * table. The reverse half is inserted first and claims its tuple: nobody else can be answered there.
 *
 *	flow_lookup()	the half of an established flow that a packet belongs to
 *	flow_lookup_embryo()	the half of one that is not established yet (embryo.h)
 *	flow_find()	either, for what is no packet of the flow itself
 *	flow_open()	a new pair of embryos, or for FLOW_TUNNEL the forward half alone
 *	flow_remove()	both halves
 *	flow_leave(), flow_resume()	from one function of a program to the next
 *	flow_record_foreign()	a connection that only looks like ours
 */
#ifndef WEIR_FLOW_H
#define WEIR_FLOW_H

#include <linux/errno.h>

#include "config.h"
#include "flow_table.h"
#include "load.h"
#include "packet.h"
#include "scratch.h"
#include "stats.h"

/* An unanswered embryo older than this may lose its source port to a new flow. */
#define EMBRYO_CLAIM_SECONDS 3

static __always_inline __u32 flow_now(void)
{
	return bpf_jiffies64();
}

/* The end of a packet that opens no flow. Returns false: there is nothing to translate by. */
static __always_inline bool flow_end(struct flow_view *view, int verdict)
{
	view->verdict = verdict;
	return false;
}

/* Copies what rewriting needs and checks that it was all of this key's flow. */
static __always_inline bool flow_read(struct flow *flow, const struct flow_key *key, struct flow_view *view)
{
	view->flow = flow;
	view->to = flow->to;
	view->action = flow->action;
	view->half = flow->half;
	view->ifindex = flow->ifindex;
	barrier();
	return *(volatile const __u32 *)&flow->seal == flow_seal(key);
}

static __always_inline void flow_touch(struct flow *flow, __u32 now)
{
	/* Written once a tick at most, so that a busy flow's cache line stays shared. */
	if (flow->last_seen != now)
		flow->last_seen = now;
}

/* Follows the end of a connection. Each half knows what came from its side. */
static __always_inline void flow_track(struct flow *flow, const struct packet *packet)
{
	if (!(packet->tcp_flags & (TCP_FIN | TCP_RST)))
		return;
	if (flow->half == FLOW_HALF_FORWARD && flow->state < FLOW_CLOSING)
		load_add_flow(flow->backend, -1);
	if (packet->tcp_flags & TCP_RST)
		flow->state = FLOW_CLOSED;
	else if (flow->state < FLOW_CLOSING)
		flow->state = FLOW_CLOSING;
}

/* Notes that a packet of the flow goes through: to be called once its verdict is certain. */
static __always_inline void flow_account(const struct packet *packet, const struct flow_view *view)
{
	struct flow *flow = view->flow;

	if (!flow)
		return; /* just opened, and accounted there */
	flow_touch(flow, packet->now);
	flow_track(flow, packet);
	if (view->action != FLOW_FOREIGN)
		traffic_count(flow->service, flow->backend, view->half, packet->length);
	else if (flow->state == FLOW_UNANSWERED)
		flow->state = FLOW_ESTABLISHED; /* what we let pass is the answer */
}

/*
 * Whether a connection's client is to be told that its backend has left the Service. The client's own reset goes on
 * to the backend.
 */
static __always_inline bool flow_has_ended(const struct packet *packet, struct flow_view *view)
{
	if (__builtin_expect(!(view->action & FLOW_ENDED), true))
		return false;
	view->action &= ~FLOW_ENDED;
	return !(packet->tcp_flags & TCP_RST);
}

/* Whether the flow is between this host itself and a VIP. */
static __always_inline bool flow_is_of_host(const struct flow_view *view)
{
	return (view->action & ~FLOW_ENDED) == FLOW_HOST;
}

static __always_inline void flow_remove(const struct flow_key *key, const struct tuple *to)
{
	struct flow_key other;

	flow_other_key(&other, key, to);
	flow_table_delete(key);
	bpf_map_delete_elem(&embryos, key);
	flow_table_delete(&other);
	bpf_map_delete_elem(&embryos, &other);
}

/* A backend that has been silent for so long may have forgotten the connection; one that no table names, sooner. */
#define SYN_SILENCE_SECONDS 60
#define SYN_SILENCE_GONE_SECONDS 3

/* For how many seconds the flow's backend has to be silent before a SYN ends the flow. 0: it is another's by now. */
static __always_inline __u32 flow_silence(const struct flow *flow)
{
	__u32 index = flow->backend;
	struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	if (!backend || backend->generation != flow->generation)
		return 0;
	return backend->flags & BACKEND_GONE ? SYN_SILENCE_GONE_SECONDS : SYN_SILENCE_SECONDS;
}

/*
 * Whether a SYN of its client makes way for a new flow: where either side has closed this one (RFC 9293,
 * 3.10.7.4), and where the backend has been silent for long. The client's own packets do not count: its SYN may be
 * the fifth to a backend that is dead.
 */
static __noinline bool flow_yields_to_syn(struct flow *flow, const struct flow_key *key, const struct flow_view *view)
{
	struct flow_key other;
	struct flow *peer;

	if (flow->state >= FLOW_CLOSING)
		return true;
	flow_other_key(&other, key, &view->to);
	/* Of a backend that answers elsewhere nothing is heard but by its client. */
	peer = view->action == FLOW_TUNNEL ? flow : flow_table_lookup(&other);
	if (!peer || peer->state >= FLOW_CLOSING)
		return true;
	return (__s32)(flow_now() - peer->last_seen) >= (__s32)(flow_silence(flow) * jiffies_per_second);
}

/* An established flow that is over, and has been quiet for a second, may lose its tuple to a new one. */
#define CLOSED_CLAIM_SECONDS 1

static __always_inline bool flow_is_over(const struct flow *flow, const struct flow_key *other)
{
	struct flow *peer = flow_table_lookup(other);

	if (flow_now() - flow->last_seen < CLOSED_CLAIM_SECONDS * jiffies_per_second ||
	    (peer && flow_now() - peer->last_seen < CLOSED_CLAIM_SECONDS * jiffies_per_second))
		return false;
	return flow->state == FLOW_CLOSED || (peer && peer->state == FLOW_CLOSED) ||
	       (flow->state == FLOW_CLOSING && (!peer || peer->state == FLOW_CLOSING));
}

/* Whether an embryo has waited too long for an answer. */
static __always_inline bool embryo_is_stale(const struct flow *embryo)
{
	return embryo->state == FLOW_UNANSWERED &&
	       flow_now() - embryo->last_seen >= EMBRYO_CLAIM_SECONDS * jiffies_per_second;
}

/*
 * Whether an embryo may lose its tuple where none is free. A flood of SYNs takes them all, so that whoever comes
 * takes another's at random, and most are the flood's: a client is through in a round trip, and established then. An
 * answered UDP embryo may be a client that has nothing more to say.
 */
static __always_inline bool embryo_is_fair_game(const struct flow_key *reverse, const struct flow *embryo)
{
	return reverse->protocol != IPPROTO_UDP || embryo->state == FLOW_UNANSWERED;
}

/* Removes the forward half of an embryo that loses the tuple of its answers, if it leads there and not to another
 * try. */
static __always_inline void embryo_forget_forward(const struct flow_key *key, const struct tuple *answers)
{
	struct flow *forward = bpf_map_lookup_elem(&embryos, key);

	if (forward && tuple_is_reverse(&forward->to, answers))
		bpf_map_delete_elem(&embryos, key);
}

/* Whether an embryo gives way: it is this flow's own, is stale, or no tuple is free. */
static __always_inline bool embryo_yields(const struct scratch *scratch)
{
	const struct flow_key *reverse = &scratch->reverse;
	struct flow *holder = bpf_map_lookup_elem(&embryos, reverse);
	struct flow_key other;

	if (!holder)
		return false;
	flow_other_key(&other, reverse, &holder->to);
	if (tuple_is_reverse(&other.tuple, &scratch->half.to))
		return true;
	if (!embryo_is_stale(holder) && !(scratch->last_resort && embryo_is_fair_game(reverse, holder)))
		return false;
	embryo_forget_forward(&other, &reverse->tuple);
	return true;
}

/*
 * Whether no established flow has the tuple scratch->reverse, or one that is over and is taken away for it. A global
 * function, so that the verifier checks it once.
 */
__noinline int established_yields(void)
{
	struct scratch *scratch = scratch_find();
	struct flow_key *reverse, other = {};
	struct flow *holder;

	if (!scratch)
		return 0;
	reverse = &scratch->reverse;
	holder = flow_table_lookup(reverse);
	if (!holder)
		return 1;
	flow_other_key(&other, reverse, &holder->to);
	if (holder->action == FLOW_FOREIGN || !flow_is_over(holder, &other))
		return 0;
	flow_table_delete(&other);
	flow_table_delete(reverse);
	return 1;
}

/*
 * Takes the tuple scratch->reverse for the answers of a new flow, whose reverse entry is scratch->half. The
 * flow table is consulted after the embryo is in: a flow being moved there is inserted before its embryo goes,
 * so it is seen in one of the two. 0: another flow has it.
 */
__noinline int flow_claim(void)
{
	struct scratch *scratch = scratch_find();
	struct flow_key *reverse;
	struct flow *half;

	if (!scratch)
		return 0;
	reverse = &scratch->reverse;
	half = &scratch->half;
	if (bpf_map_update_elem(&embryos, reverse, half, BPF_NOEXIST) &&
	    (!embryo_yields(scratch) || bpf_map_update_elem(&embryos, reverse, half, BPF_ANY)))
		return 0;
	if (established_yields())
		return 1;
	bpf_map_delete_elem(&embryos, reverse);
	return 0;
}

/*
 * The half of an established flow that a packet belongs to. True: `view` says what to do with it. Reads one
 * entry of the flow table.
 */
static __always_inline bool flow_lookup(struct packet *packet, struct flow_view *view)
{
	struct flow *flow = flow_table_lookup(&packet->key);

	if (!flow || !flow_read(flow, &packet->key, view))
		return false;
	if (packet_is_syn(packet) && view->half == FLOW_HALF_FORWARD && view->action != FLOW_FOREIGN &&
	    flow_yields_to_syn(flow, &packet->key, view)) {
		flow_remove(&packet->key, &view->to);
		return false;
	}
	return true;
}

/* The half that a key finds, established or not. It may be moved between two looks. */
static __always_inline struct flow *flow_half(const struct flow_key *key)
{
	struct flow *flow = flow_table_lookup(key);

	if (!flow)
		flow = bpf_map_lookup_elem(&embryos, key);
	return flow ?: flow_table_lookup(key);
}

/* The same, as a packet needs it; the flow does not notice. */
static __always_inline bool flow_find(const struct flow_key *key, struct flow_view *view)
{
	struct flow *flow = flow_half(key);

	return flow && flow_read(flow, key, view);
}

/*
 * Records that packets of this tuple are none of ours; `inbound` is the key as they arrive. Follows the
 * connection where it is known already. An entry of a flow of ours stays as it is. A reset opens nothing, and
 * may be our own refusal.
 */
static __always_inline void flow_record_foreign(const struct packet *packet, const struct flow_key *inbound)
{
	struct flow *known = flow_table_lookup(inbound);
	struct scratch *scratch = scratch_find();
	struct flow *half;

	if (known) {
		if (known->action != FLOW_FOREIGN)
			return;
		flow_touch(known, packet->now);
		flow_track(known, packet);
		return;
	}
	if (packet->tcp_flags & TCP_RST || bpf_map_lookup_elem(&embryos, inbound))
		return;
	if (!scratch)
		return;
	half = &scratch->half;
	__builtin_memset(half, 0, sizeof(*half));
	half->seal = flow_seal(inbound);
	half->last_seen = flow_now();
	half->action = FLOW_FOREIGN;
	half->half = FLOW_HALF_REVERSE;
	if (!flow_table_update(inbound, half, BPF_NOEXIST))
		count(flow_foreign);
}

/*
 * Leaves scratch->packet, and what is known of its flow now, to the function that goes on with it: one that is called
 * after this one and not by it, for the stack of the one is not the other's.
 */
static __always_inline int flow_leave(struct scratch *scratch, const struct flow_view *view)
{
	scratch->opened = !view->flow;
	scratch->view.to = view->to;
	scratch->view.action = view->action;
	scratch->view.half = view->half;
	scratch->view.ifindex = view->ifindex;
	return PACKET_TRANSLATES;
}

/* The flow of scratch->packet as flow_leave() has left it. */
static __always_inline void flow_resume(const struct scratch *scratch, struct flow_view *view)
{
	view->to = scratch->view.to;
	view->action = scratch->view.action;
	view->half = scratch->view.half;
	view->ifindex = scratch->view.ifindex;
	view->flow = scratch->opened ? NULL : flow_half(&scratch->packet.key);
}

#endif
