/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections straight to a backend's own address. One may have the client's port of an earlier one that reached that
 * backend by a frontend: to the backend they look the same, and so do its answers, which would get the frontend's
 * address. So a SYN clears the way for its answers where the earlier connection is over.
 */
#ifndef WEIR_STRAIGHT_H
#define WEIR_STRAIGHT_H

#include "flow.h"

/* Whether an embryo has come to nothing: either side has refused or ended it, or nobody has answered. */
static __always_inline bool embryo_is_over(const struct flow *embryo, const struct flow_key *other)
{
	struct flow *peer = bpf_map_lookup_elem(&embryos, other);

	return embryo->state >= FLOW_CLOSING || !peer || peer->state >= FLOW_CLOSING || embryo_is_stale(embryo);
}

/* Clears the way for the answers to scratch->packet, a SYN to no frontend. */
__noinline int straight_clear_way(void)
{
	struct scratch *scratch = scratch_find();
	struct flow_key *reverse, other = {};
	struct flow *embryo;

	if (!scratch)
		return 0;
	reverse = &scratch->reverse;
	flow_other_key(reverse, &scratch->packet.key, &scratch->packet.key.tuple);
	established_yields();
	embryo = bpf_map_lookup_elem(&embryos, reverse);
	if (!embryo || embryo->half != FLOW_HALF_REVERSE)
		return 0;
	flow_other_key(&other, reverse, &embryo->to);
	if (!embryo_is_over(embryo, &other))
		return 0;
	bpf_map_delete_elem(&embryos, &other);
	bpf_map_delete_elem(&embryos, reverse);
	return 0;
}

#endif
