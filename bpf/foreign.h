/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets to a frontend that somebody else translates: of connections that were there before us, and that kube-proxy
 * has in conntrack. The agent records them when it starts (controlplane/foreign), by the tuple as their client sends
 * it, and not by the edge, which conntrack does not know. They are looked for where no flow is found.
 */
#ifndef WEIR_FOREIGN_H
#define WEIR_FOREIGN_H

#include "flow.h"
#include "leave.h"

/* Whether those connections are recorded. Before, a packet in the middle of one may be anybody's. */
static __always_inline bool connections_are_known(void)
{
	__u32 zero = 0;
	struct live_settings *settings = bpf_map_lookup_elem(&live_config, &zero);

	return settings && settings->connections_known;
}

enum foreign_result {
	FOREIGN_NONE = 0,
	FOREIGN_PASS,
	FOREIGN_ENDED, /* its backend has left, and the Service wants connections reset then */
};

/* Finds the foreign flow of scratch->packet, which is no SYN. */
__noinline int foreign_find_scratch(void)
{
	struct scratch *scratch = scratch_find();
	const struct packet *packet;
	struct flow *flow;

	if (!scratch)
		return FOREIGN_NONE;
	packet = &scratch->packet;
	scratch->reverse = packet->key;
	scratch->reverse.edge = EDGE_ID_FOREIGN;
	flow = flow_table_lookup(&scratch->reverse);
	if (!flow || !flow_is_foreign(flow) || flow->seal != flow_seal(&scratch->reverse))
		return FOREIGN_NONE;
	if (flow->action & FLOW_ENDED && !(packet->tcp_flags & TCP_RST))
		return FOREIGN_ENDED;
	flow_touch(flow, packet->now);
	flow_track(flow, packet);
	return FOREIGN_PASS;
}

/* Whether scratch->packet is of a foreign flow; `view` has its verdict then. */
static __always_inline bool packet_is_foreign(const struct packet *packet, struct flow_view *view)
{
	if (packet_is_syn(packet))
		return false;
	switch (foreign_find_scratch()) {
	case FOREIGN_PASS:
		count_left(pass_foreign);
		view->verdict = PACKET_PASS;
		return true;
	case FOREIGN_ENDED:
		view->verdict = reset(packet);
		return true;
	default:
		return false;
	}
}

#endif
