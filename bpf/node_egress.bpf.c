// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * tc egress of the node edge: turns back the answers of local backends, translates what this host itself still sends
 * to VIPs, and records connections of the node and of masqueraded pods that an arriving packet could take for ours.
 */
#define PACKET_BACK BPF_F_INGRESS /* who sends by this device is answered by the stack */
#include "packet_tc.h"

#include "back.h"
#include "device.h"
#include "flow.h"
#include "fragment.h"
#include "host.h"
#include "icmp_echo.h"
#include "icmp_quote.h"
#include "leave.h"
#include "mss.h"
#include "nat.h"
#include "route.h"
#include "reject.h"
#include "service.h"
#include "try.h"

/*
 * The way out of the device the client came by, where the routes have chosen another one. ROUTE_STACK: the packet
 * leaves by this one, as there is no other way for it, or none is known.
 */
static __always_inline enum route_result depart_way(const struct packet *packet, const struct flow_view *view,
						    struct route *route)
{
	enum route_result result = ROUTE_STACK;

	if (view->ifindex && view->ifindex != packet->ifindex && device_is_known(view->ifindex))
		result = route_find_by(packet, &view->to, view->ifindex, route);
	return verifier_forget(result, packet->now);
}

static __always_inline int depart_drop(void)
{
	count(drop_rewrite_failed);
	return PACKET_DROP;
}

static __always_inline int depart_by(struct packet *packet, const struct device *device, enum route_result result,
				     const struct route *route)
{
	return packet_can_send(packet, result, route) ? packet_send_instead(packet, device, result, route)
						      : PACKET_PASS;
}

/* An answer of a local backend. What is too long for its way is answered before it is translated. */
static __always_inline int depart_answer(struct packet *packet, struct device *device, struct flow_view *view)
{
	enum route_result result;
	struct route route = {};

	if (view->half != FLOW_HALF_REVERSE || view->action != FLOW_STACK)
		return PACKET_PASS;
	result = depart_way(packet, view, &route);
	if (result == ROUTE_TOO_BIG)
		return reply_too_big(packet, device, route.fib.mtu_result);
	flow_account(packet, view);
	if (!nat_rewrite(packet, &view->to, false))
		return depart_drop();
	return depart_by(packet, device, result, &route);
}

/* Whether an answer to this source port could be taken for a packet of ours. */
static __always_inline bool port_is_ours(const struct packet *packet)
{
	struct frontend_key key = {
		.address = packet->key.tuple.source,
		.port = bpf_ntohs(packet->key.tuple.source_port),
		.protocol = packet->key.protocol,
	};

	if (snat_port_in_range(packet->key.tuple.source_port))
		return true;
	frontend_key_any_address(&key);
	return bpf_map_lookup_elem(&frontends, &key) != NULL;
}

/* A packet that is no answer of ours. */
static __always_inline int depart_foreign(struct packet *packet)
{
	struct flow_key inbound;

	if (!port_is_ours(packet) || !address_is_of_node(&packet->key.tuple.source))
		return PACKET_PASS;
	flow_other_key(&inbound, &packet->key, &packet->key.tuple);
	flow_record_foreign(packet, &inbound);
	return PACKET_PASS;
}

/*
 * Handles scratch->packet, an answer of a flow that is not established: scratch->view. Where the client's next
 * packets come in a tunnel the flow says how long they may be (tunnel_arrive.h): it is told when it is answered.
 */
__noinline int depart_begun_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};
	__u16 mtu;

	if (!scratch)
		return PACKET_PASS;
	flow_resume(scratch, &view);
	mtu = view.flow && view.action == FLOW_STACK ? view.flow->hop.mtu : 0;
	if (mtu && packet.tcp_flags & TCP_SYN &&
	    !mss_clamp(context, scratch, mtu - ip_header_length(packet.ipv6) - sizeof(struct tcphdr)))
		return depart_drop();
	return depart_answer(&packet, device, &view);
}

/* Handles scratch->packet, which is of no established flow. Returns the verdict, or PACKET_TRANSLATES. */
__noinline int depart_begin_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};

	if (!scratch)
		return PACKET_PASS;
	switch (flow_lookup_begun(&packet, &view)) {
	case FLOW_RETRY: /* what this host sends to a VIP is not tried elsewhere */
	case FLOW_HIT:
		if (flow_is_of_host(&view))
			return PACKET_OF_HOST;
		if (answer_is_lost(&view, FLOW_STACK))
			return refuse_lost(&packet);
		return flow_leave(scratch, &view);
	case FLOW_REFUSED:
		return PACKET_DROP;
	case FLOW_MISS:
		break;
	}
	if (host_asks_vip(&packet))
		return PACKET_OF_HOST;
	return depart_foreign(&packet);
}

static __always_inline bool host_pings_vip(const struct packet *packet)
{
	return !packet->context->ingress_ifindex && echo_is_asked(packet, VIP_ANSWERS_INSIDE);
}

/*
 * An error of this host itself: of a server here, about a question, it goes the way of that one's answers. About an
 * answer it would have to go to the backend: it ends here.
 */
static __always_inline int depart_error_of_host(struct scratch *scratch, const struct flow_view *view)
{
	return view->half == FLOW_HALF_REVERSE ? packet_moves(scratch, view->ifindex) : host_drop();
}

/* scratch->packet is ICMP: an error of a local backend, or of the node itself, about a client's packet? */
__noinline int depart_icmp_scratch(packet_context *context)
{
	struct packet packet = {}, quote = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	enum route_result result;
	enum quote_result kind;
	struct flow_view *view;
	struct route route = {};

	if (!scratch)
		return PACKET_PASS;
	packet.ifindex = device_logical(device, packet_ifindex(context));
	view = &scratch->quoted.half;
	kind = quote_resume(&quote, context, scratch);
	if (quote_ends(kind))
		return PACKET_DROP;
	if (kind == QUOTE_NONE && host_pings_vip(&packet))
		return echo_answer(&packet, scratch, device);
	if (kind == QUOTE_NONE)
		return host_strays(&packet) ? host_drop() : PACKET_PASS;
	if (flow_is_of_host(view))
		return depart_error_of_host(scratch, view);
	if (view->half != FLOW_HALF_REVERSE || view->action != FLOW_STACK)
		return PACKET_PASS;
	result = depart_way(&packet, view, &route);
	if (!quote_translate(&packet, &quote, view, false))
		return PACKET_DROP;
	return depart_by(&packet, device, result, &route);
}

/* Whether a fragment that nothing is known of is one that this host sends to a VIP. */
static __always_inline bool fragment_asks_vip(const struct packet *packet)
{
	if (packet->context->ingress_ifindex)
		return false;
	return bpf_map_lookup_elem(&vips, &packet->key.tuple.destination) || host_strays(packet);
}

/*
 * Handles scratch->packet, a fragment. Returns PACKET_BEGINS where the scratch has it with its ports, or the verdict.
 * None is waited for: what leaves the node comes from it, in order.
 */
__noinline int depart_fragment_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct fragment_key key = {};
	struct packet packet = {};

	if (!scratch)
		return PACKET_DROP;
	scratch_load(&packet, context, scratch);
	if (!fragment_parse(&packet, &key))
		return host_leave_fragment(&packet);
	if (packet.fragment == FRAGMENT_FIRST) {
		if (!fragment_parse_first(&packet))
			return host_leave_fragment(&packet);
		datagram_note(&key, &packet, DATAGRAM_KNOWN);
	} else if (datagram_read(&key, &packet) != DATAGRAM_KNOWN) {
		return fragment_asks_vip(&packet) ? fragment_drop() : fragment_leave();
	}
	return fragment_begins(&packet);
}

/* A packet that is not understood, or has no ports. */
static __always_inline int depart_unread(const struct packet *packet, enum parse_result parsed)
{
	if (packet_has_more(packet, parsed))
		return PACKET_AGAIN;
	if (parsed != PARSE_ICMP && parsed != PARSE_FRAGMENT && host_strays(packet))
		return host_drop();
	return packet_leave(packet, parsed);
}

/* A packet of an established flow, whole; of any other, who goes on with it. */
__noinline int depart_known(packet_context *context)
{
	struct packet packet = { .context = context, .key.edge = EDGE_ID_NODE, .now = bpf_jiffies64() };
	struct device *device = device_of_packet(context, packet.now);
	enum parse_result parsed;
	struct flow_view view;

	if (!device)
		return PACKET_PASS;
	packet.ifindex = device_logical(device, packet_ifindex(context));
	parsed = packet_parse(&packet, !(device->flags & DEVICE_NO_ETHERNET));
	if (parsed != PARSE_OK)
		return depart_unread(&packet, parsed);
	if (flow_lookup(&packet, &view))
		return flow_is_of_host(&view) ? packet_of_host(&packet) : depart_answer(&packet, device, &view);
	return scratch_save(&packet) ? PACKET_BEGINS : PACKET_DROP;
}

SEC("tc")
int node_egress(struct __sk_buff *context)
{
	int verdict = depart_known(context);

	if (verdict == PACKET_AGAIN)
		verdict = depart_known(context);
	if (verdict == PACKET_FRAGMENT)
		verdict = depart_fragment_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = depart_begin_scratch(context);
	if (verdict == PACKET_TRANSLATES)
		verdict = depart_begun_scratch(context);
	if (verdict == PACKET_ICMP) {
		quote_find_scratch(context);
		verdict = depart_icmp_scratch(context);
	}
	if (verdict == PACKET_OF_HOST)
		verdict = host_send(context);
	if (verdict == PACKET_MOVES)
		return packet_move_scratch(context);
	return packet_answer(context, verdict);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
