// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * tc ingress of the pod edge, on the host's side of a pod's veth: what the pod sends. A packet to a
 * frontend gets its backend's address and goes on through the stack; the pod's own address stays.
 */
#include "packet_tc.h"

#include "reject.h"
#include "device.h"
#include "leave.h"
#include "nat.h"
#include "service.h"
#include "snat.h"

static __always_inline int pod_rewrite(struct packet *packet, const struct tuple *to)
{
	if (nat_rewrite(packet, to))
		return PACKET_PASS;
	count(drop_rewrite_failed);
	return PACKET_DROP;
}

/* Back into the pod it came from: we are the router here. */
static __always_inline int pod_return(struct packet *packet, const struct device *device, const struct tuple *to)
{
	if (!nat_rewrite(packet, to) || !nat_decrement_ttl(packet)) {
		count(drop_rewrite_failed);
		return PACKET_DROP;
	}
	return packet_return(packet, device);
}

static __always_inline int pod_translate(struct packet *packet, struct device *device, struct flow_view *view)
{
	if (view->action == FLOW_RETURN) {
		if (packet->ttl <= 1)
			return reply_time_exceeded(packet, device);
		flow_account(packet, view);
		return pod_return(packet, device, &view->to);
	}
	if (view->half == FLOW_HALF_REVERSE)
		return PACKET_PASS; /* answers come the other way */
	flow_account(packet, view);
	return pod_rewrite(packet, &view->to);
}

/* The pod has picked itself: it must see answers from elsewhere, so the node's address stands in for it. */
static __always_inline int pod_open_hairpin(struct packet *packet, struct device *device, struct birth *birth)
{
	const struct address *source = device_address(device, packet->ipv6);

	if (address_is_zero(source)) {
		count(drop_no_hairpin_address);
		return PACKET_DROP;
	}
	if (packet->ttl <= 1)
		return reply_time_exceeded(packet, device);
	birth->to.source = *source;
	birth->snat = true;
	return flow_open(packet, birth, FLOW_RETURN) ? pod_return(packet, device, &birth->to) : PACKET_DROP;
}

static __always_inline int pod_open(struct packet *packet, struct device *device, const struct service *service)
{
	__u32 index = service_pick(packet, service, SIDE_INSIDE);
	struct backend *backend;
	struct birth *birth;

	if (!index && service->flags & SERVICE_NO_ENDPOINTS)
		return reject(packet, device);
	if (!index) {
		count(drop_no_local_endpoint);
		return PACKET_DROP;
	}
	backend = backend_find(index);
	if (!backend) {
		count(drop_stale_backend);
		return PACKET_DROP;
	}
	birth = flow_prepare(packet, service, index, backend);
	if (!birth)
		return PACKET_DROP;
	if (address_equal(&packet->key.tuple.source, &backend->address))
		return pod_open_hairpin(packet, device, birth);
	return flow_open(packet, birth, FLOW_STACK) ? pod_rewrite(packet, &birth->to) : PACKET_DROP;
}

/* A packet of no flow. */
static __always_inline int pod_new(struct packet *packet, struct device *device)
{
	struct service_view view;

	switch (service_find(packet, &view)) {
	case SERVICE_NONE:
		return PACKET_PASS;
	case SERVICE_STALE:
		count(drop_stale_service);
		return PACKET_DROP;
	case SERVICE_FOUND:
		break;
	}
	if (!address_is_host(&packet->key.tuple.source))
		return PACKET_PASS;
	if (packet_is_tcp(packet) && !packet_is_syn(packet)) {
		count(pass_without_flow);
		return PACKET_PASS;
	}
	return pod_open(packet, device, view.service);
}

SEC("tc")
int pod_ingress(struct __sk_buff *context)
{
	struct packet packet = {.context = context};
	struct device *device = device_find(packet_ifindex(context));
	enum parse_result parsed;
	struct flow_view view;

	if (!device)
		return PACKET_PASS;
	packet.key.edge = device->edge_id;
	parsed = packet_parse(&packet, !(device->flags & DEVICE_NO_ETHERNET));
	if (parsed != PARSE_OK)
		return packet_leave(parsed);
	if (!packet_is_for(&packet, device)) {
		count(pass_not_for_us);
		return PACKET_PASS;
	}
	packet.ifindex = packet_ifindex(context);
	switch (flow_lookup(&packet, &view)) {
	case FLOW_HIT:
		return pod_translate(&packet, device, &view);
	case FLOW_REFUSED:
		return PACKET_DROP;
	case FLOW_MISS:
		break;
	}
	return pod_new(&packet, device);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
