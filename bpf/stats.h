/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counters: why packets were dropped or left alone, and the traffic of services and backends. */
#ifndef WEIR_STATS_H
#define WEIR_STATS_H

#include "maps.h"

/* Adds one to a named counter of struct packet_counters. */
#define count(name)                                                                         \
	({                                                                                  \
		__u32 zero_ = 0;                                                            \
		struct packet_counters *counters_ = bpf_map_lookup_elem(&counters, &zero_); \
		if (counters_)                                                              \
			counters_->name++;                                                  \
	})

static __always_inline void traffic_add(struct traffic *traffic, enum flow_half half, __u32 bytes)
{
	if (!traffic)
		return;
	if (half == FLOW_HALF_FORWARD) {
		traffic->packets++;
		traffic->bytes += bytes;
	} else {
		traffic->reply_packets++;
		traffic->reply_bytes += bytes;
	}
}

/* Accounts a packet of `bytes` to its service and backend. */
static __always_inline void traffic_count(__u32 service, __u32 backend, enum flow_half half, __u32 bytes)
{
	traffic_add(bpf_map_lookup_elem(&service_stats, &service), half, bytes);
	traffic_add(bpf_map_lookup_elem(&backend_stats, &backend), half, bytes);
}

/* Accounts a new flow to its service and backend. */
static __always_inline void traffic_count_flow(__u32 service, __u32 backend)
{
	struct traffic *traffic = bpf_map_lookup_elem(&service_stats, &service);

	if (traffic)
		traffic->flows++;
	traffic = bpf_map_lookup_elem(&backend_stats, &backend);
	if (traffic)
		traffic->flows++;
	count(flow_new);
}

#endif
