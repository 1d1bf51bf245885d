/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which table of a service a packet at the node edge is for. What arrives there is from outside, unless
 * detectLocalMode says that it is a pod's: by its source, or by the device.
 */
#ifndef WEIR_SIDE_H
#define WEIR_SIDE_H

#include "config.h"
#include "frontend.h"
#include "packet.h"

static __always_inline bool source_is_inside(const struct address *source)
{
	struct prefix_key key = { .prefix_length = ADDRESS_PREFIX_MAX, .address = *source };

	return inside_by_source && bpf_map_lookup_elem(&inside_sources, &key);
}

static __always_inline enum side packet_side(const struct packet *packet, const struct device *device)
{
	if (device->flags & DEVICE_INSIDE || source_is_inside(&packet->key.tuple.source))
		return SIDE_INSIDE;
	return SIDE_OUTSIDE;
}

#endif
