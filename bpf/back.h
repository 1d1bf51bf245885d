/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The way back to a client: out of the device that it came by. Its answers may not have another one: an uplink's
 * provider drops what comes from addresses of another, firewalls what they have not seen begin. But the routes may
 * not know it: clouds, and hosts with several uplinks, route by the source or by a mark, and the best default route
 * is another uplink's.
 */
#ifndef WEIR_BACK_H
#define WEIR_BACK_H

#include "device.h"
#include "route.h"
#include "scratch.h"

/*
 * Puts into scratch->router where the router is that some default route out of the device leads to. Returns what
 * comes of a packet of that length to there. Global: verified once.
 */
__noinline int router_find_scratch(__u32 ifindex, __u32 ipv6, __u32 length)
{
	struct scratch *scratch = scratch_find();
	const struct address *router;

	if (!scratch || !device_read(ifindex, &scratch->by))
		return ROUTE_STACK;
	router = device_router(&scratch->by, ipv6);
	if (address_is_zero(router))
		return ROUTE_STACK;
	scratch->router = *router;
	if (!ipv6)
		*(__be32 *)&scratch->router = address_ipv4(router);
	return length > scratch->by.mtu ? ROUTE_TOO_BIG : ROUTE_BY_ROUTER;
}

/* To the router at the end of a device. */
static __always_inline enum route_result route_find_router(const struct packet *packet, __u32 ifindex,
							   struct route *route)
{
	struct scratch *scratch = scratch_find();
	enum route_result result;

	if (!scratch)
		return ROUTE_STACK;
	result = router_find_scratch(ifindex, packet->ipv6, packet_route_length(packet));
	__builtin_memcpy(route->fib.ipv6_dst, &scratch->router, sizeof(route->fib.ipv6_dst));
	route->fib.ifindex = ifindex;
	route->fib.mtu_result = scratch->by.mtu;
	return result;
}

/* The way out of the device `ifindex`; ROUTE_STACK: none is known. XDP leaves to tc what no route leads there for. */
static __always_inline enum route_result route_find_by(const struct packet *packet, const struct tuple *to,
						       __u32 ifindex, struct route *route)
{
	enum route_result result = route_find_out(packet, to, ifindex, route);

	if (result != ROUTE_STACK && route->fib.ifindex == ifindex)
		return result;
	return PACKET_IS_XDP ? ROUTE_BY_ROUTER : route_find_router(packet, ifindex, route);
}

/* The way back to a client that came in by the device `ifindex`; where none is known, whatever the routes say. */
static __always_inline enum route_result route_find_back(const struct packet *packet, const struct tuple *to,
							 __u32 ifindex, struct route *route)
{
	enum route_result result = ROUTE_STACK;

	if (ifindex)
		result = route_find_by(packet, to, ifindex, route);
	if (result == ROUTE_STACK)
		result = route_find(packet, to, route);
	return verifier_forget(result, packet->now);
}

#endif
