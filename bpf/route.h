/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where the kernel would send a packet next: its routes, neighbours and MTUs through bpf_fib_lookup. */
#ifndef WEIR_ROUTE_H
#define WEIR_ROUTE_H

#include "config.h"
#include "packet.h"

#define ROUTE_AF_INET 2
#define ROUTE_AF_INET6 10

enum route_result {
	ROUTE_OUT = 0,	    /* next hop known, with its MAC */
	ROUTE_NO_NEIGHBOUR, /* next hop known, its MAC not yet */
	ROUTE_BY_ROUTER,    /* no route, but to the router at the end of a device (back.h) */
	ROUTE_STACK,	    /* for the stack to deliver or to refuse: this host's own address, or no route */
	ROUTE_TOO_BIG,	    /* mtu says for what */
	ROUTE_DROP,	    /* a blackhole, prohibit or unreachable route, or forwarding is off */
};

struct route {
	struct bpf_fib_lookup fib;
};

static __always_inline __u16 packet_route_length(const struct packet *packet);

static __always_inline void route_fill(struct bpf_fib_lookup *fib, const struct packet *packet,
				       const struct address *source, const struct tuple *to)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->tot_len = packet_route_length(packet);
	fib->l4_protocol = packet->key.protocol;
	fib->sport = to->source_port;
	fib->dport = to->destination_port;
	if (packet->ipv6) {
		fib->family = ROUTE_AF_INET6;
		__builtin_memcpy(fib->ipv6_src, source, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, &to->destination, sizeof(fib->ipv6_dst));
	} else {
		fib->family = ROUTE_AF_INET;
		fib->ipv4_src = address_ipv4(source);
		fib->ipv4_dst = address_ipv4(&to->destination);
	}
}

/*
 * What bpf_fib_lookup returns, in our words. A table, so that the verifier does not go on with each result by itself.
 */
static const __u8 route_results[] = {
	[BPF_FIB_LKUP_RET_SUCCESS] = ROUTE_OUT,		[BPF_FIB_LKUP_RET_BLACKHOLE] = ROUTE_DROP,
	[BPF_FIB_LKUP_RET_UNREACHABLE] = ROUTE_DROP,	[BPF_FIB_LKUP_RET_PROHIBIT] = ROUTE_DROP,
	[BPF_FIB_LKUP_RET_NOT_FWDED] = ROUTE_STACK,	[BPF_FIB_LKUP_RET_FWD_DISABLED] = ROUTE_DROP,
	[BPF_FIB_LKUP_RET_UNSUPP_LWT] = ROUTE_STACK,	[BPF_FIB_LKUP_RET_NO_NEIGH] = ROUTE_NO_NEIGHBOUR,
	[BPF_FIB_LKUP_RET_FRAG_NEEDED] = ROUTE_TOO_BIG,
};

static __always_inline enum route_result route_result_of(unsigned long result)
{
	/* An error: the device is gone. */
	return result < sizeof(route_results) ? route_results[result] : ROUTE_STACK;
}

/* The route of a packet of this device to `to`, which has got so much before its IP header. */
static __always_inline enum route_result route_find_wider(const struct packet *packet, const struct tuple *to,
							  __u32 before, struct route *route)
{
	route_fill(&route->fib, packet, &packet->key.tuple.source, to);
	route->fib.tot_len += before;
	route->fib.ifindex = packet_ifindex(packet->context);
	return route_result_of(bpf_fib_lookup(packet->context, &route->fib, sizeof(route->fib), 0));
}

/*
 * The route of a packet that came in by this device and shall go to `to`. It is looked up with the source
 * the packet came with: SNAT comes after routing, as in the kernel.
 */
static __always_inline enum route_result route_find(const struct packet *packet, const struct tuple *to,
						    struct route *route)
{
	return route_find_wider(packet, to, 0, route);
}

/* The route of what `from` sends to the packet's source. */
static __always_inline enum route_result route_find_source(const struct packet *packet, const struct address *from,
							   struct route *route)
{
	struct tuple back;

	tuple_reverse(&back, &packet->key.tuple);
	route_fill(&route->fib, packet, from, &back);
	route->fib.ifindex = packet_ifindex(packet->context);
	return route_result_of(bpf_fib_lookup(packet->context, &route->fib, sizeof(route->fib), 0));
}

/* The route out of the device `ifindex`. IPv6 takes that for a preference: fib.ifindex says what it came to. */
static __always_inline enum route_result route_find_out(const struct packet *packet, const struct tuple *to,
							__u32 ifindex, struct route *route)
{
	route_fill(&route->fib, packet, &to->source, to);
	route->fib.ifindex = ifindex;
	return route_result_of(
		bpf_fib_lookup(packet->context, &route->fib, sizeof(route->fib), BPF_FIB_LOOKUP_OUTPUT));
}

/* The index of lo in every network namespace. */
#define LOOPBACK_IFINDEX 1

/* The route of a packet that this host itself sends: its rules say it comes by lo. */
static __always_inline enum route_result route_find_of_host(const struct packet *packet, const struct tuple *to,
							    struct route *route)
{
	route_fill(&route->fib, packet, &packet->key.tuple.source, to);
	route->fib.ifindex = LOOPBACK_IFINDEX;
	return route_result_of(bpf_fib_lookup(packet->context, &route->fib, sizeof(route->fib), 0));
}

/* Whether what is remembered of the next hop is still believed, and the packet fits with so much before it. */
static __always_inline bool hop_is_good(const struct hop *hop, const struct packet *packet, __u32 before)
{
	return packet_route_length(packet) + before <= hop->mtu && packet->now - hop->read < BELIEVE_JIFFIES;
}

/*
 * Remembers a route that leads out; while it is written it has no MTU, and nothing fits. Kernels before 5.12
 * say no MTU, but the length that was asked for.
 */
static __always_inline void hop_remember(struct hop *hop, const struct route *route, __u32 now)
{
	*(volatile __u16 *)&hop->mtu = 0;
	hop->read = now;
	hop->by_xdp = PACKET_IS_XDP;
	hop->ifindex = route->fib.ifindex;
	__builtin_memcpy(hop->destination_mac, route->fib.dmac, sizeof(hop->destination_mac));
	__builtin_memcpy(hop->source_mac, route->fib.smac, sizeof(hop->source_mac));
	barrier();
	*(volatile __u16 *)&hop->mtu = route->fib.mtu_result;
}

#endif
