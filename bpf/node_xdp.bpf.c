// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP on the NICs of the node edge: what tc would do, before there is a socket buffer. */
#include "packet_xdp.h"

#include "answer_xdp.h"
#include "node.h"
#include "tunnel.h"

SEC("xdp")
int node_xdp(struct xdp_md *context)
{
	int verdict = node_arrive(context);

	return verdict == PACKET_TUNNELS ? tunnel_send_scratch(context) : verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
