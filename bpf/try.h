/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Tries: a client whose SYN is not answered sends it again, and that one goes to another backend as well. The first
 * backend that answers has the flow.
 *
 * The forward half leads to the first try, and the state of that one's reverse half is what the tries contend for: it
 * goes from FLOW_UNANSWERED to FLOW_ANSWERED, or, by the answer of another try, to FLOW_LOST. Then the forward half
 * leads to the winner. Reverse halves of losers stay until they are swept: their backends may answer yet.
 */
#ifndef WEIR_TRY_H
#define WEIR_TRY_H

#include "embryo.h"
#include "service.h"

#define FLOW_STATE_SHIFT (8 * (__builtin_offsetof(struct flow, state) - __builtin_offsetof(struct flow, action)))

/*
 * Changes the state of an embryo that is unanswered. False: it is not. For kernels before 5.12 the loader makes a
 * plain store of the compare-and-swap: two answers at the very same moment may then both count.
 */
static __always_inline bool embryo_turn(struct flow *embryo, enum flow_state state)
{
	__u32 *word = (__u32 *)&embryo->action;
	__u32 before = *(volatile __u32 *)word;

	if ((__u8)(before >> FLOW_STATE_SHIFT) != FLOW_UNANSWERED)
		return false;
	return __sync_val_compare_and_swap(word, before, before | (__u32)state << FLOW_STATE_SHIFT) == before;
}

/*
 * Takes the flow from the try that its forward half leads to, for the half `try`. False: that one has been answered.
 * Where it has been evicted, it is put back as a loser: that only one can do.
 */
static __always_inline bool try_defeats_first(struct scratch *scratch, const struct flow_key *forward_key,
					      const struct flow *forward, const struct flow *try)
{
	struct flow_key *first_key = &scratch->reverse;
	struct flow *half = &scratch->half;
	struct flow *first;

	if (forward->action == FLOW_TUNNEL)
		return true; /* the client has had no answer yet, or it would be no embryo */
	flow_other_key(first_key, forward_key, &forward->to);
	first = bpf_map_lookup_elem(&embryos, first_key);
	if (first)
		return first->seal == flow_seal(first_key) && tuple_is_reverse(&first->to, &forward_key->tuple) &&
		       embryo_turn(first, FLOW_LOST);
	*half = *forward;
	half->seal = flow_seal(first_key);
	half->to = try->to;
	half->half = FLOW_HALF_REVERSE;
	half->state = FLOW_LOST;
	return !bpf_map_update_elem(&embryos, first_key, half, BPF_NOEXIST);
}

/* The client's next flow of a service with affinity goes to the backend that has answered. */
static __always_inline void try_remember(const struct flow_key *forward_key, const struct flow *try)
{
	const struct tuple *tuple = &forward_key->tuple;
	struct service_view view = {};

	if (service_find(&tuple->destination, tuple->destination_port, forward_key->protocol, false, &view) !=
		    SERVICE_FOUND ||
	    !view.service->affinity_timeout)
		return;
	affinity_remember(view.service->affinity_group, address_high(&tuple->source), address_low(&tuple->source),
			  try->backend, try->generation);
}

/*
 * Gives the flow to the half `try`, a retry whose answer scratch->packet is, unless another one has it. False:
 * another one has it.
 */
static __always_inline bool try_wins(struct scratch *scratch, struct flow *try)
{
	struct flow *half = &scratch->half, *forward;
	struct flow_key forward_key;

	flow_other_key(&forward_key, &scratch->packet.key, &try->to);
	forward = bpf_map_lookup_elem(&embryos, &forward_key);
	if (!forward)
		return false;
	if (tuple_is_reverse(&forward->to, &scratch->packet.key.tuple))
		return true; /* it has it already */
	if (!try_defeats_first(scratch, &forward_key, forward, try))
		return false;
	try->state = FLOW_ANSWERED;
	try->retry = false;
	*half = *try;
	half->seal = flow_seal(&forward_key);
	tuple_reverse(&half->to, &scratch->packet.key.tuple);
	half->half = FLOW_HALF_FORWARD;
	half->state = FLOW_UNANSWERED;
	half->hop.mtu = 0; /* the other way's */
	bpf_map_update_elem(&embryos, &forward_key, half, BPF_ANY);
	count(flow_moved);
	try_remember(&forward_key, try);
	return true;
}

/* Whether scratch->packet, an answer, is of the backend that has the flow, or gets it now. */
__noinline int try_is_first_scratch(void)
{
	struct scratch *scratch = scratch_find();
	struct flow *try;

	if (!scratch)
		return 0;
	try = bpf_map_lookup_elem(&embryos, &scratch->packet.key);
	if (!try)
		return flow_table_lookup(&scratch->packet.key) != NULL; /* established meanwhile */
	if (!(scratch->packet.tcp_flags & TCP_RST))
		backend_answered(try->backend, try->generation);
	if (try->state != FLOW_UNANSWERED)
		return try->state != FLOW_LOST;
	if (!try->retry)
		return embryo_turn(try, FLOW_ANSWERED) || try->state != FLOW_LOST;
	/* A refusal is no answer, as long as another backend may have a better one. */
	if (!(scratch->packet.tcp_flags & TCP_RST) && try_wins(scratch, try))
		return 1;
	try->state = FLOW_LOST;
	return 0;
}

/*
 * Whether an error about the SYN of a try, whose answers have the key scratch->reverse, would tell the client of a
 * failure that is none: another backend has the flow, or, as with a refusal, may get it. Of the backend that was
 * asked first it is for the client.
 */
__noinline int try_has_rival(void)
{
	struct scratch *scratch = scratch_find();
	struct flow_key forward_key = {}, first_key = {};
	struct flow *try, *forward;

	if (!scratch)
		return 0;
	try = bpf_map_lookup_elem(&embryos, &scratch->reverse);
	if (!try || try->half != FLOW_HALF_REVERSE)
		return 0;
	if (try->state == FLOW_LOST)
		return 1;
	if (!try->retry)
		return 0;
	flow_other_key(&forward_key, &scratch->reverse, &try->to);
	forward = bpf_map_lookup_elem(&embryos, &forward_key);
	if (!forward)
		return flow_table_lookup(&forward_key) != NULL;
	flow_other_key(&first_key, &forward_key, &forward->to);
	return bpf_map_lookup_elem(&embryos, &first_key) != NULL;
}

/* Notes that the backend of a flow has left its client's SYN, scratch->packet, without an answer. */
static __always_inline void try_fails(struct scratch *scratch, const struct flow *forward)
{
	scratch->tried = forward->backend;
	backend_was_silent(forward->backend, forward->generation,
			   address_hash(&scratch->packet.key.tuple.source) | 1);
}

/*
 * Whether scratch->packet, found among the embryos, is the answer of a backend that does not have the flow. Answers
 * of flows with this action come by the program that asks; others it has no say about.
 */
static __always_inline bool answer_is_lost(const struct flow_view *view, enum flow_action action)
{
	return view->half == FLOW_HALF_REVERSE && view->action == action && !try_is_first_scratch();
}

#endif
