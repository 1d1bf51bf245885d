/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps of established flows: one for each family, since the short key of IPv4 is found 4 ns faster.
 * Everybody else has struct flow_key, and does not know that there are two.
 */
#ifndef WEIR_FLOW_TABLE_H
#define WEIR_FLOW_TABLE_H

#include "address.h"
#include "maps.h"
#include "tuple.h"

/*
 * What ties a value to its key. An element of a hash map is recycled at once when it is deleted, so a
 * program that found it may read another flow's value; the kernel writes a value from its start, hence the
 * seal comes first in the record and is compared after the rest has been read.
 */
static __always_inline __u32 flow_seal(const struct flow_key *key)
{
	__u32 ports = *(const __u32 *)&key->tuple.source_port;
	__u32 from = address_ipv4(&key->tuple.source), to = address_ipv4(&key->tuple.destination);

	return from ^ (to << 7 | to >> 25) ^ ports ^ ((__u32)key->edge << 8 | key->protocol);
}

static __always_inline bool flow_key_is_ipv4(const struct flow_key *key)
{
	return address_is_ipv4(&key->tuple.source);
}

static __always_inline void flow_key_pack(struct flow_key_ipv4 *packed, const struct flow_key *key)
{
	packed->source = address_ipv4(&key->tuple.source);
	packed->destination = address_ipv4(&key->tuple.destination);
	packed->ports = tuple_ports(&key->tuple);
	packed->edge_protocol = (__u32)key->edge << 16 | key->protocol;
}

static __always_inline void flow_key_unpack(struct flow_key *key, const struct flow_key_ipv4 *packed)
{
	address_set_ipv4(&key->tuple.source, packed->source);
	address_set_ipv4(&key->tuple.destination, packed->destination);
	tuple_set_ports(&key->tuple, packed->ports);
	key->edge = packed->edge_protocol >> 16;
	key->protocol = packed->edge_protocol;
	key->pad = 0;
}

/* Whether it is not ours. */
static __always_inline bool flow_is_foreign(const struct flow *flow)
{
	return (flow->action & ~FLOW_ENDED) == FLOW_FOREIGN;
}

static __always_inline struct flow *flow_table_lookup(const struct flow_key *key)
{
	struct flow_key_ipv4 packed;

	if (!flow_key_is_ipv4(key))
		return bpf_map_lookup_elem(&flows_ipv6, key);
	flow_key_pack(&packed, key);
	return bpf_map_lookup_elem(&flows_ipv4, &packed);
}

/*
 * Returns 0 or a negative error, of 32 bits: before Linux 6.4 nobody has filled the other half of what a map's own
 * function returned.
 */
static __always_inline int flow_table_update(const struct flow_key *key, const struct flow *flow, __u64 flags)
{
	struct flow_key_ipv4 packed;

	if (!flow_key_is_ipv4(key))
		return bpf_map_update_elem(&flows_ipv6, key, flow, flags);
	flow_key_pack(&packed, key);
	return bpf_map_update_elem(&flows_ipv4, &packed, flow, flags);
}

static __always_inline void flow_table_delete(const struct flow_key *key)
{
	struct flow_key_ipv4 packed;

	if (flow_key_is_ipv4(key)) {
		flow_key_pack(&packed, key);
		bpf_map_delete_elem(&flows_ipv4, &packed);
	} else {
		bpf_map_delete_elem(&flows_ipv6, key);
	}
}

#endif
