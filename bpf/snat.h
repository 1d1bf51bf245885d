/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Source ports, and how a flow is opened with one. What the backend answers to must be free: as the tuple of
 * another flow's answers, and, on the node's own address, as that of a socket.
 */
#ifndef WEIR_SNAT_H
#define WEIR_SNAT_H

#include "flow.h"
#include "pick.h"

/* How many ports are tried, and how many more where only embryos' can be had, before a flow is refused. */
#define SNAT_PROBES 32
#define SNAT_LAST_PROBES 8

/* Whether a socket of this network namespace takes packets of this tuple, connected or listening. */
static __always_inline bool socket_takes(packet_context *context, const struct tuple *tuple, __u8 protocol)
{
	struct scratch *scratch = scratch_find();
	struct bpf_sock_tuple *key;
	struct bpf_sock *socket;
	__u32 size;

	if (!scratch || protocol == IPPROTO_SCTP) /* whose sockets no program can look up */
		return false;
	key = &scratch->socket;
	if (address_is_ipv4(&tuple->destination)) {
		key->ipv4.saddr = address_ipv4(&tuple->source);
		key->ipv4.daddr = address_ipv4(&tuple->destination);
		key->ipv4.sport = tuple->source_port;
		key->ipv4.dport = tuple->destination_port;
		size = sizeof(key->ipv4);
	} else {
		__builtin_memcpy(key->ipv6.saddr, &tuple->source, sizeof(key->ipv6.saddr));
		__builtin_memcpy(key->ipv6.daddr, &tuple->destination, sizeof(key->ipv6.daddr));
		key->ipv6.sport = tuple->source_port;
		key->ipv6.dport = tuple->destination_port;
		size = sizeof(key->ipv6);
	}
	if (protocol == IPPROTO_TCP)
		socket = bpf_sk_lookup_tcp(context, key, size, BPF_F_CURRENT_NETNS, 0);
	else
		socket = bpf_sk_lookup_udp(context, key, size, BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return false;
	bpf_sk_release(socket);
	return true;
}

static __always_inline __be16 snat_port_at(__u32 position)
{
	__u32 size = (__u32)snat_port_max - snat_port_min + 1;

	return bpf_htons(snat_port_min + position % size);
}

/* Claims answers for scratch->birth as it is; scratch->reverse becomes their key. 0: another has the tuple. */
__noinline int snat_try_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct flow_key *reverse;

	if (!scratch)
		return 0;
	reverse = &scratch->reverse;
	flow_other_key(reverse, &scratch->packet.key, &scratch->birth.to);
	scratch->half.seal = flow_seal(reverse);
	if (scratch->birth.snat && socket_takes(context, &reverse->tuple, reverse->protocol))
		return 0;
	return flow_claim();
}

/*
 * Claims answers for the flow: with the client's own port if that may be, else with one of the SNAT range,
 * from a random place on. scratch->half is the reverse entry.
 */
static __always_inline bool snat_claim(packet_context *context, struct scratch *scratch)
{
	struct birth *birth = &scratch->birth;
	bool own_port = !birth->snat || snat_port_in_range(birth->to.source_port);
	__u32 start = bpf_get_prandom_u32();
	int i;

	for (i = 0; i < SNAT_PROBES + SNAT_LAST_PROBES; i++) {
		scratch->last_resort = i >= SNAT_PROBES;
		if (i > 0 || !own_port)
			birth->to.source_port = snat_port_at(start + i);
		if (snat_try_scratch(context))
			return true;
	}
	return false;
}

/* Notes another try of a flow that is there. False: it no longer is. */
static __always_inline bool flow_retried(const struct packet *packet)
{
	struct flow *forward = bpf_map_lookup_elem(&embryos, &packet->key);

	if (!forward)
		return false;
	forward->last_seen = packet->now;
	count(flow_retried);
	return true;
}

/* Accounts a flow that has been opened. */
static __always_inline void flow_born(const struct packet *packet, const struct birth *birth)
{
	const struct address *client = &packet->key.tuple.source;

	if (birth->affinity_group)
		affinity_remember(birth->affinity_group, address_high(client), address_low(client), birth->backend,
				  birth->generation);
	load_add_flow(birth->backend, 1);
	traffic_count_flow(birth->service, birth->backend);
	traffic_count(birth->service, birth->backend, FLOW_HALF_FORWARD, packet->length);
}

/* Opens the flow that scratch->birth describes. 0: no source port is left toward that backend. */
__noinline int flow_open_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct packet *packet;
	struct birth *birth;
	struct flow *half;

	if (!scratch)
		return 0;
	packet = &scratch->packet;
	birth = &scratch->birth;
	half = &scratch->half;
	__builtin_memset(half, 0, sizeof(*half));
	half->last_seen = flow_now();
	half->service = birth->service;
	half->backend = birth->backend;
	half->generation = birth->generation;
	half->ifindex = packet->ifindex;
	half->action = birth->action;
	half->half = FLOW_HALF_REVERSE;
	half->retry = birth->retry;
	half->hop.mtu = birth->answers_mtu;
	tuple_reverse(&half->to, &packet->key.tuple);
	if (birth->action == FLOW_TUNNEL)
		scratch->reverse = packet->key; /* there is none to claim, nor to be taken back */
	else if (!snat_claim(context, scratch))
		return 0;
	backend_is_asked(birth->backend, birth->generation);
	if (birth->retry && flow_retried(packet)) {
		traffic_count(birth->service, birth->backend, FLOW_HALF_FORWARD, packet->length);
		return 1;
	}
	half->seal = flow_seal(&packet->key);
	half->to = birth->to;
	half->half = FLOW_HALF_FORWARD;
	half->retry = false;
	half->hop.mtu = 0;
	if (bpf_map_update_elem(&embryos, &packet->key, half, BPF_ANY)) {
		bpf_map_delete_elem(&embryos, &scratch->reverse);
		return 0;
	}
	flow_born(packet, birth);
	return 1;
}

/*
 * Begins a flow of the packet to a backend; the caller says what else is special, and calls flow_open. `tried`: the
 * backend that the flow has already, and that is silent; 0: it is a new flow.
 */
static __always_inline struct birth *flow_prepare(const struct packet *packet, const struct service *service,
						  __u32 index, const struct backend *backend, __u32 tried)
{
	struct scratch *scratch = scratch_save(packet);
	struct birth *birth;

	if (!scratch)
		return NULL;
	birth = &scratch->birth;
	birth->to.source = packet->key.tuple.source;
	birth->to.destination = backend->address;
	birth->to.source_port = packet->key.tuple.source_port;
	birth->to.destination_port = bpf_htons(backend->port);
	birth->service = service->id;
	birth->backend = index;
	birth->generation = backend->generation;
	birth->retry = tried;
	birth->affinity_group = service->affinity_timeout && !tried ? service->affinity_group : 0;
	birth->action = FLOW_STACK;
	birth->snat = false;
	birth->answers_mtu = 0;
	return birth;
}

/* Opens a flow and makes `view` its forward half. False: no source port is left toward that backend. */
static __always_inline bool flow_open(const struct packet *packet, const struct birth *birth, struct flow_view *view)
{
	if (!flow_open_scratch(packet->context)) {
		count(drop_snat_ports_exhausted);
		return flow_end(view, PACKET_DROP);
	}
	view->flow = NULL;
	view->to = birth->to;
	view->action = birth->action;
	view->half = FLOW_HALF_FORWARD;
	view->ifindex = packet->ifindex;
	return true;
}

/* Opens the flow scratch->birth. Called after who has planned it. Returns PACKET_TRANSLATES, or the verdict. */
__noinline int flow_begin_scratch(packet_context *context)
{
	struct packet packet = { .context = context };
	struct scratch *scratch = scratch_find();
	struct flow_view view = {};

	if (!scratch)
		return PACKET_DROP;
	packet.ifindex = scratch->packet.ifindex;
	if (!flow_open(&packet, &scratch->birth, &view))
		return view.verdict;
	return flow_leave(scratch, &view);
}

#endif
