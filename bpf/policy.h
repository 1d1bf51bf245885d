/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where a policy of XFRM (IPsec) may concern what is forwarded. The kernel asks its policies when it routes, and not
 * about what programs redirect. So what may be concerned is translated and left to the stack: it forwards the packet,
 * a rule of the node (controlplane/masquerade) gives it the node's address, and policies see it before and after
 * that. The agent tells the destinations of outgoing policies (controlplane/xfrm); what else they select by, the
 * kernel compares.
 */
#ifndef WEIR_POLICY_H
#define WEIR_POLICY_H

#include "flow.h"
#include "leave.h"
#include "maps.h"
#include "pick.h"

static __always_inline bool policies_exist(void)
{
	__u32 zero = 0;
	struct live_settings *settings = bpf_map_lookup_elem(&live_config, &zero);

	return settings && settings->policies_exist;
}

/* Whether an outgoing policy is about packets to that address. Global: verified once. */
__noinline int policy_is_about(__u64 high, __u64 low)
{
	struct prefix_key key = { .prefix_length = ADDRESS_PREFIX_MAX };

	address_set_halves(&key.address, high, low);
	return bpf_map_lookup_elem(&xfrm_prefixes, &key) != NULL;
}

static __noinline bool policy_is_about_flow(const struct packet *packet, const struct tuple *to)
{
	const struct address *source = &packet->key.tuple.source;

	return policy_is_about(address_high(&to->destination), address_low(&to->destination)) ||
	       policy_is_about(address_high(source), address_low(source));
}

/* Whether a policy may concern packets of a flow, either way. */
static __always_inline bool policy_concerns(const struct packet *packet, const struct tuple *to)
{
	return policies_exist() && policy_is_about_flow(packet, to);
}

/*
 * A packet of a flow that is redirected, and that a policy has come to concern. The flow ends: its client is told,
 * and its next one goes by the stack.
 */
static __always_inline int policy_ends_flow(struct packet *packet, const struct flow_view *view)
{
	if (PACKET_IS_XDP)
		return packet_pass_up();
	count(drop_policy);
	if (view->half == FLOW_HALF_REVERSE)
		return PACKET_DROP;
	flow_remove(&packet->key, &view->to);
	return packet_is_of_connection(packet) ? reset(packet) : PACKET_DROP;
}

#endif
