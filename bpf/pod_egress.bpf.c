// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc egress of the pod edge: answers to a pod get back the address the pod had asked. */
#define PACKET_BACK BPF_F_INGRESS /* who sends by this device is answered by the stack */
#include "packet_tc.h"

#include "device.h"
#include "flow.h"
#include "fragment_wait.h"
#include "icmp_quote.h"
#include "leave.h"
#include "nat.h"
#include "reject.h"
#include "try.h"

static __always_inline int pod_answer(struct packet *packet, const struct flow_view *view)
{
	if (view->half != FLOW_HALF_REVERSE || view->action != FLOW_STACK)
		return PACKET_PASS;
	flow_account(packet, view);
	if (nat_rewrite(packet, &view->to, false))
		return PACKET_PASS;
	count(drop_rewrite_failed);
	return PACKET_DROP;
}

/* Handles scratch->packet, which is of no established flow. Returns the verdict. */
__noinline int pod_answer_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct packet packet = {};
	struct flow_view view;

	if (!scratch)
		return PACKET_DROP;
	scratch_load(&packet, context, scratch);
	if (flow_lookup_begun(&packet, &view) != FLOW_HIT)
		return PACKET_PASS;
	if (answer_is_lost(&view, FLOW_STACK))
		return refuse_lost(&packet);
	return pod_answer(&packet, &view);
}

/* scratch->packet is ICMP: an error about a packet of the pod to a frontend? */
__noinline int pod_answer_icmp_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct packet packet = {}, quote = {};
	enum quote_result kind;
	struct flow_view *view;

	if (!scratch)
		return PACKET_DROP;
	scratch_load(&packet, context, scratch);
	view = &scratch->quoted.half;
	kind = quote_resume(&quote, context, scratch);
	if (quote_ends(kind))
		return PACKET_DROP;
	if (kind == QUOTE_NONE || view->half != FLOW_HALF_REVERSE || view->action != FLOW_STACK)
		return PACKET_PASS;
	return quote_translate(&packet, &quote, view, false) ? PACKET_PASS : PACKET_DROP;
}

/* A packet of an established flow, whole; of any other, PACKET_BEGINS. */
__noinline int pod_answer_known(packet_context *context)
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
		return packet_leave(&packet, parsed);
	if (flow_lookup(&packet, &view))
		return pod_answer(&packet, &view);
	return scratch_save(&packet) ? PACKET_BEGINS : PACKET_DROP;
}

SEC("tc")
int pod_egress(struct __sk_buff *context)
{
	int verdict = pod_answer_known(context);

	if (verdict == PACKET_AGAIN)
		verdict = pod_answer_known(context);
	if (verdict == PACKET_FRAGMENT)
		verdict = fragment_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = pod_answer_scratch(context);
	if (verdict != PACKET_ICMP)
		return packet_answer(context, verdict);
	quote_find_scratch(context);
	return pod_answer_icmp_scratch(context);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
