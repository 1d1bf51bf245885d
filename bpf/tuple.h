/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tuples turned around: how the halves of a flow find each other. */
#ifndef WEIR_TUPLE_H
#define WEIR_TUPLE_H

#include "address.h"

/*
 * Whether a flow can be between the two. A NodePort's frontend has the unspecified address, which is nobody's:
 * a packet sent there is not for it.
 */
static __always_inline bool tuple_is_of_hosts(const struct tuple *tuple)
{
	return address_is_host(&tuple->source) && address_is_host(&tuple->destination);
}

/* Both ports as one word, as they stand in the packet. */
static __always_inline __be32 tuple_ports(const struct tuple *tuple)
{
	return *(const __be32 *)&tuple->source_port;
}

static __always_inline void tuple_set_ports(struct tuple *tuple, __be32 ports)
{
	*(__be32 *)&tuple->source_port = ports;
}

/* Whom an answer goes to: the tuple turned around. */
static __always_inline void tuple_reverse(struct tuple *reverse, const struct tuple *tuple)
{
	reverse->source = tuple->destination;
	reverse->destination = tuple->source;
	reverse->source_port = tuple->destination_port;
	reverse->destination_port = tuple->source_port;
}

static __always_inline bool tuple_is_reverse(const struct tuple *a, const struct tuple *b)
{
	return address_equal(&a->source, &b->destination) && address_equal(&a->destination, &b->source) &&
	       a->source_port == b->destination_port && a->destination_port == b->source_port;
}

/* The key of the other half of the flow that `key` finds as `to`. */
static __always_inline void flow_other_key(struct flow_key *other, const struct flow_key *key, const struct tuple *to)
{
	tuple_reverse(&other->tuple, to);
	other->edge = key->edge;
	other->protocol = key->protocol;
	other->pad = 0;
}

#endif
