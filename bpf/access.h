/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who may reach a frontend. */
#ifndef WEIR_ACCESS_H
#define WEIR_ACCESS_H

#include "frontend.h"

/* Whether a client may open a flow: loadBalancerSourceRanges speak of load balancer addresses alone. */
static __always_inline bool source_is_admitted(const struct service_view *view, const struct address *source)
{
	struct source_key key = { .prefix_length = SOURCE_PREFIX_LENGTH_MAX };

	if (!(view->service->flags & SERVICE_SOURCE_RANGES) || view->kind != FRONTEND_LOAD_BALANCER)
		return true;
	key.service = view->service->id;
	key.address = *source;
	return bpf_map_lookup_elem(&sources, &key) != NULL;
}

#endif
