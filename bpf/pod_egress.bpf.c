// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc egress of the pod edge: answers to a pod get back the address the pod had asked. */
#include "packet_tc.h"

#include "device.h"
#include "flow.h"
#include "leave.h"
#include "nat.h"

SEC("tc")
int pod_egress(struct __sk_buff *context)
{
	struct packet packet = { .context = context, .now = bpf_jiffies64() };
	struct device *device = device_of_packet(context, packet.now);
	enum parse_result parsed;
	struct flow_view view;

	if (!device)
		return PACKET_PASS;
	packet.key.edge = device->edge_id;
	parsed = packet_parse(&packet, !(device->flags & DEVICE_NO_ETHERNET));
	if (parsed != PARSE_OK)
		return packet_leave(parsed);
	if (flow_lookup(&packet, &view) != FLOW_HIT || view.half != FLOW_HALF_REVERSE || view.action != FLOW_STACK)
		return PACKET_PASS;
	flow_account(&packet, &view);
	if (nat_rewrite(&packet, &view.to, false))
		return PACKET_PASS;
	count(drop_rewrite_failed);
	return PACKET_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
