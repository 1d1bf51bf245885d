// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The sweep: walks a flow table in the kernel, removes the pairs that have been idle too long, and notes
 * which services and backends the living ones name. The agent reads the iterator with a small buffer; a
 * byte is written every few thousand elements, so that each read is a bounded piece of work.
 */
#include "sweep.h"

SEC("iter/bpf_map_elem")
int sweep_embryos(struct bpf_iter__bpf_map_elem *context)
{
	return sweep_element(context, &embryos);
}

SEC("iter/bpf_map_elem")
int sweep_flows(struct bpf_iter__bpf_map_elem *context)
{
	return sweep_element(context, &flows);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
