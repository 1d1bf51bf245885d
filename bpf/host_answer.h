/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers to what this host has sent to a VIP (host.h). The stack takes one from the VIP only by the device that
 * leads there (rp_filter), which the question left by. So they are translated where they come by that device
 * (node_host.h); what comes by another one, or from a pod (pod_host.h), is made to come by it first.
 */
#ifndef WEIR_HOST_ANSWER_H
#define WEIR_HOST_ANSWER_H

#include "flow.h"

/* Whether a key is that of an answer to this host, and what its flow says. */
static __always_inline bool host_awaits(const struct flow_key *key, struct flow_view *view)
{
	return flow_find(key, view) && flow_is_of_host(view) && view->half == FLOW_HALF_REVERSE;
}

#endif
