// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of the node edge: the complete path of what arrives. */
#include "packet_tc.h"

#include "reject.h"
#include "node_host.h"
#include "fragment_wait.h"
#include "node.h"
#include "node_icmp.h"
#include "cut.h"
#include "tunnel.h"
#include "tunnel_arrive.h"

SEC("tc")
int node_ingress(struct __sk_buff *context)
{
	int verdict;

	/* A VLAN's packets are its own device's. */
	if (context->vlan_present)
		return PACKET_PASS;
	verdict = node_arrive(context);
	if (verdict < PACKET_BEGINS)
		return verdict;
	if (verdict == PACKET_TUNNEL)
		verdict = tunnel_arrive(context);
	if (verdict == PACKET_ICMP) {
		quote_find_scratch(context);
		verdict = node_icmp_scratch(context);
	}
	if (verdict == PACKET_TUNNELS)
		verdict = tunnel_send_scratch(context);
	if (verdict == PACKET_CUTS)
		verdict = cut_scratch(context);
	if (verdict == PACKET_MOVES)
		return packet_move_scratch(context);
	return packet_answer(context, verdict);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
