// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP on the NICs of the node edge: what tc would do, before there is a socket buffer. */
#include "packet_xdp.h"

#include "answer_xdp.h"
#include "node.h"

SEC("xdp")
int node_xdp(struct xdp_md *context)
{
	return node_arrive(context);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
