/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packet access at XDP: wire packets, whole and with complete checksums. */
#ifndef WEIR_PACKET_XDP_H
#define WEIR_PACKET_XDP_H

#include <linux/bpf.h>

typedef struct xdp_md packet_context;

#define PACKET_PASS XDP_PASS
#define PACKET_DROP XDP_DROP
#define PACKET_IS_XDP 1
#define PACKET_PARSE_INLINE __always_inline

#include "config.h"
#include "cursor.h"
#include <stdbool.h>

static __always_inline struct cursor packet_cursor(packet_context *xdp)
{
	struct cursor cursor = { .position = (void *)(long)xdp->data, .end = (void *)(long)xdp->data_end };

	return cursor;
}

static __always_inline __u32 packet_wire_length(packet_context *xdp)
{
	__u64 end = xdp->data_end, data = xdp->data;

	/* Packet pointers subtract in 64 bits only; the compiler must not narrow them first. */
	barrier_var(end);
	barrier_var(data);
	return end - data;
}

static __always_inline bool packet_is_scattered(packet_context *xdp, __u32 end)
{
	return xdp_frags && bpf_xdp_get_buff_len(xdp) >= end;
}

static __always_inline __u32 packet_ifindex(packet_context *xdp)
{
	return xdp->ingress_ifindex;
}

static __always_inline bool packet_set_mark(packet_context *xdp, __u32 bit)
{
	return false;
}

static __always_inline bool packet_is_gso(packet_context *xdp)
{
	return false;
}

static __always_inline bool packet_is_bundle(packet_context *xdp)
{
	return false;
}

/* Devices without Ethernet headers have no XDP program of ours. */
static __always_inline int packet_protocol(packet_context *xdp)
{
	return -1;
}

static __always_inline bool packet_make_linear(packet_context *xdp)
{
	return false;
}

#include "checksum.h"
#include "crc32c.h"
#include "device.h"
#include "route.h"

static __always_inline bool packet_is_for(const struct packet *packet, const struct device *device)
{
	struct ethhdr *ethernet = packet_at(packet, 0, sizeof(*ethernet));

	if (!ethernet)
		return false;
	return mac_equal(ethernet->h_dest, device->mac) ||
	       (device->master && mac_equal(ethernet->h_dest, device->master_mac));
}

static __always_inline __u16 packet_route_length(const struct packet *packet)
{
	return packet->length;
}

/*
 * Gives an SCTP packet of `length` bytes the checksum for ports that change by `change`. A global function, so that
 * the verifier checks it once. 0: it is too short.
 */
__noinline int sctp_update_checksum(packet_context *xdp, __u32 offset, __u32 length, __u32 change)
{
	struct sctp_header *sctp = context_at(xdp, offset, sizeof(*sctp));

	if (!sctp)
		return 0;
	sctp->checksum ^= crc32c_change(change, length);
	return 1;
}

static __always_inline bool packet_update_checksum(struct packet *packet, __u32 address_delta, __u32 port_delta)
{
	__u32 delta = checksum_sum((__u64)address_delta + port_delta);
	struct tcphdr *tcp;
	struct udphdr *udp;

	if (packet->key.protocol == IPPROTO_TCP) {
		tcp = packet_at(packet, packet->transport_offset, sizeof(*tcp));
		if (!tcp)
			return false;
		tcp->check = checksum_apply(tcp->check, delta);
		return true;
	}
	udp = packet_at(packet, packet->transport_offset, sizeof(*udp));
	if (!udp)
		return false;
	if (!udp->check)
		return true; /* 0 means none (RFC 768), and stays so */
	udp->check = checksum_apply(udp->check, delta);
	if (!udp->check)
		udp->check = 0xffff;
	return true;
}

/* There is none. */
static __always_inline void packet_update_sum(struct packet *packet, __u32 delta)
{
}

static __always_inline bool packet_widen(struct packet *packet, __u32 size)
{
	struct ethhdr *ethernet;

	if (bpf_xdp_adjust_head(packet->context, -(int)size))
		return false;
	ethernet = packet_at(packet, 0, sizeof(*ethernet));
	if (!ethernet)
		return false;
	ethernet->h_proto = packet->ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	return true;
}

/*
 * What XDP cannot do goes up unchanged: no MAC yet, a target without XDP of ours, a VLAN device; and packets in
 * several buffers, which not every driver sends.
 */
static __always_inline bool packet_can_send(const struct packet *packet, enum route_result result,
					    const struct route *route)
{
	if (packet->tagged || packet->scattered || result != ROUTE_OUT)
		return false;
	return route->fib.ifindex == packet_ifindex(packet->context) ||
	       bpf_map_lookup_elem(&xdp_devices, &route->fib.ifindex);
}

/* Or else packet_can_send() has said no. */
static __always_inline bool packet_has_hop(const struct device *device, enum route_result result,
					   const struct route *route)
{
	return true;
}

/* Not by one that tc has found. */
static __always_inline bool packet_can_send_hop(const struct hop *hop)
{
	return hop->by_xdp;
}

static __always_inline int packet_send_hop(struct packet *packet, const struct hop *hop)
{
	if (!packet_write_macs(packet, hop->destination_mac, hop->source_mac))
		return PACKET_DROP;
	if (hop->ifindex == packet_ifindex(packet->context))
		return XDP_TX;
	return bpf_redirect_map(&xdp_devices, hop->ifindex, 0);
}

static __always_inline int packet_send(struct packet *packet, const struct device *device, const struct route *route)
{
	struct hop hop;

	hop_remember(&hop, route, packet->now);
	return packet_send_hop(packet, &hop);
}

#endif
