// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * tc ingress of the pod edge, on the host's side of a pod's veth: what the pod sends. A packet to a
 * frontend gets its backend's address and goes on through the stack; the pod's own address stays.
 */
#include "packet_tc.h"

#include "reject.h"
#include "access_packet.h"
#include "cluster_ip_packet.h"
#include "device.h"
#include "foreign.h"
#include "fragment_wait.h"
#include "icmp_echo.h"
#include "icmp_quote.h"
#include "leave.h"
#include "masquerade.h"
#include "nat.h"
#include "pod_host.h"
#include "service.h"
#include "snat.h"
#include "socket_lookup.h"
#include "try.h"

static __always_inline int pod_translate(struct packet *packet, struct device *device, struct flow_view *view)
{
	bool back;

	if (flow_has_ended(packet, view))
		return reset(packet);
	back = view->action == FLOW_RETURN;
	if (!back && view->half == FLOW_HALF_REVERSE)
		return PACKET_PASS; /* answers come the other way */
	if (back && packet->ttl <= 1)
		return reply_time_exceeded(packet, device);
	flow_account(packet, view);
	/* Back into the pod it came from, we are the router. */
	if (!nat_rewrite(packet, &view->to, back)) {
		count(drop_rewrite_failed);
		return PACKET_DROP;
	}
	return back ? packet_return(packet, device) : PACKET_PASS;
}

/* The pod has picked itself: it must see answers from elsewhere, so the node's address stands in for it. */
static __always_inline bool pod_plan_hairpin(struct packet *packet, struct device *device, struct birth *birth,
					     struct flow_view *view)
{
	const struct address *source = device_address(device, packet->ipv6);

	if (packet_is_midstream(packet))
		return flow_end(view, reset(packet)); /* its source port is lost */
	if (address_is_zero(source)) {
		count(drop_no_hairpin_address);
		return flow_end(view, PACKET_DROP);
	}
	if (packet->ttl <= 1)
		return flow_end(view, reply_time_exceeded(packet, device)); /* it opens nothing */
	birth->to.source = *source;
	birth->snat = true;
	birth->action = FLOW_RETURN;
	return true;
}

static __always_inline int pod_no_backend(struct packet *packet, struct device *device, const struct service *service)
{
	if (service->flags & SERVICE_NO_ENDPOINTS)
		return reject(packet, device);
	count(drop_no_local_endpoint);
	return PACKET_DROP;
}

/* A packet to a frontend, of no flow yet, or of one whose backend, `tried`, is silent. */
static __always_inline bool pod_open(struct packet *packet, struct device *device, const struct service *service,
				     __u32 tried, struct flow_view *view)
{
	__u32 index = service_pick(packet, service, SIDE_INSIDE, tried);
	struct backend *backend;
	struct birth *birth;

	if (!index)
		return flow_end(view, pod_no_backend(packet, device, service));
	if (index == tried)
		return flow_again(packet, view) || flow_end(view, PACKET_DROP); /* there is no other */
	if (packet_is_midstream(packet) && !service_picks_by_table(service, SIDE_INSIDE))
		return flow_end(view, reset(packet));
	backend = backend_find(index);
	if (!backend) {
		count(drop_stale_backend);
		return flow_end(view, PACKET_DROP);
	}
	birth = flow_prepare(packet, service, index, backend, tried);
	if (!birth)
		return flow_end(view, PACKET_DROP);
	if (address_equal(&packet->key.tuple.source, &backend->address) &&
	    !pod_plan_hairpin(packet, device, birth, view))
		return false;
	return flow_open(packet, birth, view);
}

/* Whether a socket of the node listens on the ClusterIP that the pod asks for (NodeLocal DNSCache). */
static __always_inline bool pod_finds_local_listener(struct packet *packet, const struct service_view *view)
{
	const struct flow_key *key = &packet->key;
	struct scratch *scratch;

	if (view->kind != FRONTEND_CLUSTER_IP || !address_is_local_vip(node_netns, &key->tuple.destination))
		return false;
	scratch = scratch_find();
	if (!scratch || !socket_listens(packet->context, &scratch->socket, &key->tuple.destination,
					key->tuple.destination_port, key->protocol))
		return false;
	count(pass_local_listener);
	return true;
}

/* A packet that no frontend is for: it may be the pod's answer to this host. */
static __always_inline int pod_unclaimed(struct packet *packet, struct device *device)
{
	int verdict = PACKET_BEGINS;

	if (snat_port_in_range(packet->key.tuple.destination_port))
		verdict = host_answer_scratch(packet->context);
	return verdict == PACKET_BEGINS ? packet_unclaimed(packet, device) : verdict;
}

/* A packet of no flow, or of one whose backend, `tried`, is silent: whether `view` is of a flow now. */
static __always_inline bool pod_new(struct packet *packet, struct device *device, __u32 tried, struct flow_view *view)
{
	struct service_view service = {};

	switch (service_of_packet(packet, &service)) {
	case SERVICE_NONE:
		return flow_end(view, pod_unclaimed(packet, device));
	case SERVICE_STALE:
		count(drop_stale_service);
		return flow_end(view, PACKET_DROP);
	case SERVICE_FOUND:
		break;
	}
	if (!tuple_is_of_hosts(&packet->key.tuple) || fragment_is_stray(packet) ||
	    pod_finds_local_listener(packet, &service))
		return flow_end(view, PACKET_PASS);
	if (packet_is_foreign(packet, view))
		return false;
	if (packet_is_midstream(packet) && (service.node_port || !connections_are_known())) {
		count_left(pass_without_flow);
		return flow_end(view, PACKET_PASS);
	}
	if (!packet_is_admitted(packet, &service))
		return flow_end(view, PACKET_DROP);
	return pod_open(packet, device, service.service, tried, view);
}

/*
 * Handles scratch->packet, which is of no established flow, if it is of an embryo. Returns the verdict;
 * PACKET_BEGINS: it is not, or is a SYN that scratch->tried has left without an answer.
 */
__noinline int pod_embryo_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};

	if (!scratch)
		return PACKET_PASS;
	if (!packet_masquerade(&packet))
		return packet_pass_up();
	switch (flow_lookup_begun(&packet, &view)) {
	case FLOW_REFUSED:
		return PACKET_DROP;
	case FLOW_MISS:
		scratch->tried = 0;
		return PACKET_BEGINS;
	case FLOW_RETRY:
		try_fails(scratch, view.flow);
		return PACKET_BEGINS;
	case FLOW_HIT:
		break;
	}
	if (answer_is_lost(&view, FLOW_RETURN))
		return refuse_lost(&packet);
	return pod_translate(&packet, device, &view);
}

/* Opens a flow for scratch->packet, or tries another backend than scratch->tried. Returns the verdict. */
__noinline int pod_new_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};

	if (!scratch)
		return PACKET_PASS;
	if (!pod_new(&packet, device, scratch->tried, &view))
		return view.verdict;
	return pod_translate(&packet, device, &view);
}

/* scratch->packet is ICMP: a ping of a VIP, or an error about an answer that the pod has got? */
__noinline int pod_icmp_scratch(packet_context *context)
{
	struct packet packet = {}, quote = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	enum quote_result kind;
	struct flow_view *view;
	bool back;

	if (!scratch || !packet_is_for(&packet, device))
		return PACKET_PASS;
	view = &scratch->quoted.half;
	kind = quote_resume(&quote, context, scratch);
	if (quote_ends(kind))
		return PACKET_DROP;
	back = view->action == FLOW_RETURN;
	if (kind == QUOTE_NONE && echo_is_asked(&packet, VIP_ANSWERS_INSIDE))
		return echo_answer(&packet, scratch, device);
	if (kind == QUOTE_NONE)
		return pod_error_to_host(scratch, &quote);
	if (!back && view->half == FLOW_HALF_REVERSE)
		return PACKET_PASS;
	if (back && packet.ttl <= 1)
		return quote_drop_undeliverable();
	if (!quote_translate(&packet, &quote, view, back))
		return PACKET_DROP;
	return back ? packet_return(&packet, device) : PACKET_PASS;
}

/* A packet of an established flow, whole; of any other, PACKET_BEGINS. */
__noinline int pod_known(packet_context *context)
{
	struct packet packet = { .context = context, .now = bpf_jiffies64() };
	struct device *device = device_of_packet(context, packet.now);
	enum parse_result parsed;
	struct flow_view view;

	if (!device)
		return PACKET_PASS;
	packet.key.edge = device->edge_id;
	packet.ifindex = packet_ifindex(context);
	parsed = packet_parse(&packet, !(device->flags & DEVICE_NO_ETHERNET));
	if (parsed != PARSE_OK)
		return packet_leave(&packet, parsed);
	if (!packet_is_for(&packet, device)) {
		count_left(pass_not_for_us);
		return PACKET_PASS;
	}
	if (flow_lookup(&packet, &view))
		return pod_translate(&packet, device, &view);
	return scratch_save(&packet) ? PACKET_BEGINS : PACKET_DROP;
}

SEC("tc")
int pod_ingress(struct __sk_buff *context)
{
	int verdict = pod_known(context);

	if (verdict == PACKET_AGAIN)
		verdict = pod_known(context);
	if (verdict == PACKET_FRAGMENT)
		verdict = fragment_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = pod_embryo_scratch(context);
	if (verdict == PACKET_BEGINS)
		verdict = pod_new_scratch(context);
	if (verdict == PACKET_ICMP) {
		quote_find_scratch(context);
		verdict = pod_icmp_scratch(context);
	}
	if (verdict == PACKET_MOVES)
		return packet_move_scratch(context);
	return packet_answer(context, verdict);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
