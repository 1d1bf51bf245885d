// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The sweep: walks a flow table in the kernel, removes the pairs that have been idle too long, and notes
 * which services and backends the living ones name. The agent reads the iterator with a small buffer; a
 * byte is written now and then, so that each read is a bounded piece of work.
 */
#include "sweep.h"

static __always_inline int sweep_canonical(struct bpf_iter__bpf_map_elem *context, enum sweep_table table)
{
	struct flow_key *found = context->key;
	struct flow *flow = context->value;
	struct flow_key key;

	if (!found || !flow)
		return 0;
	key = *found;
	return sweep_element(context->meta, table, &key, flow);
}

SEC("iter/bpf_map_elem")
int sweep_embryos(struct bpf_iter__bpf_map_elem *context)
{
	return sweep_canonical(context, SWEEP_EMBRYOS);
}

SEC("iter/bpf_map_elem")
int sweep_flows_ipv6(struct bpf_iter__bpf_map_elem *context)
{
	return sweep_canonical(context, SWEEP_FLOWS);
}

SEC("iter/bpf_map_elem")
int sweep_flows_ipv4(struct bpf_iter__bpf_map_elem *context)
{
	struct flow_key_ipv4 *found = context->key;
	struct flow *flow = context->value;
	struct flow_key_ipv4 packed;
	struct flow_key key;

	if (!found || !flow)
		return 0;
	packed = *found;
	flow_key_unpack(&key, &packed);
	return sweep_element(context->meta, SWEEP_FLOWS, &key, flow);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
