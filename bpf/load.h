/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How many flows and sockets are open to a backend. */
#ifndef WEIR_LOAD_H
#define WEIR_LOAD_H

#include "maps.h"

static __always_inline void load_add_flow(__u32 backend, __s32 change)
{
	struct backend_load *load = bpf_map_lookup_elem(&backend_loads, &backend);

	if (load)
		__sync_fetch_and_add(&load->flows, change);
}

static __always_inline void load_add_socket(__u32 backend, __s32 change)
{
	struct backend_load *load = bpf_map_lookup_elem(&backend_loads, &backend);

	if (load)
		__sync_fetch_and_add(&load->sockets, change);
}

static __always_inline __s32 load_of(__u32 backend)
{
	struct backend_load *load = bpf_map_lookup_elem(&backend_loads, &backend);

	return load ? load->flows + load->correction + load->sockets : 0;
}

/* A sweep has met a living flow. */
static __always_inline void load_count(__u32 backend)
{
	struct backend_load *load = bpf_map_lookup_elem(&backend_loads, &backend);

	if (load)
		load->counted++;
}

#endif
