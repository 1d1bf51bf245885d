// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of the node edge: the complete path of what arrives. */
#include "packet_tc.h"

#include "reject.h"
#include "node.h"

SEC("tc")
int node_ingress(struct __sk_buff *context)
{
	/* A VLAN's packets are its own device's. */
	if (context->vlan_present)
		return PACKET_PASS;
	return node_arrive(context);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
