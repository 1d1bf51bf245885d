/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packet access at tc: socket buffers, whose checksum may be partial and whose data may not be linear. */
#ifndef WEIR_PACKET_TC_H
#define WEIR_PACKET_TC_H

#include <linux/bpf.h>

typedef struct __sk_buff packet_context;

/* "Nothing to say": the programs behind ours still run. TC_ACT_OK would skip them. TCX_NEXT is the same. */
#define PACKET_PASS (-1)
#define PACKET_DROP 2 /* TC_ACT_SHOT */
#define PACKET_IS_XDP 0
#define PACKET_PARSE_INLINE __noinline

/* More than any headers we walk. */
#define PACKET_LINEAR_BYTES 256

#define PACKET_HOST 0 /* linux/if_packet.h */

#define GSO_BY_FRAGS 0xffff /* linux/skbuff.h */

#ifndef BPF_F_IPV6
#define BPF_F_IPV6 (1ULL << 7)
#endif

#include "cursor.h"
#include <stdbool.h>

static __always_inline struct cursor packet_cursor(packet_context *skb)
{
	struct cursor cursor = { .position = (void *)(long)skb->data, .end = (void *)(long)skb->data_end };

	return cursor;
}

/* All buffers count already. */
static __always_inline bool packet_is_scattered(packet_context *skb, __u32 end)
{
	return false;
}

static __always_inline __u32 packet_wire_length(packet_context *skb)
{
	return skb->len;
}

static __always_inline __u32 packet_ifindex(packet_context *skb)
{
	return skb->ifindex;
}

static __always_inline bool packet_set_mark(packet_context *skb, __u32 bit)
{
	skb->mark |= bit;
	return true;
}

static __always_inline bool packet_is_gso(packet_context *skb)
{
	return skb->gso_size != 0;
}

static __always_inline bool packet_is_bundle(packet_context *skb)
{
	return skb->gso_size == GSO_BY_FRAGS;
}

static __always_inline int packet_protocol(packet_context *skb)
{
	return (__be16)skb->protocol;
}

static __always_inline bool packet_make_linear(packet_context *skb)
{
	__u64 end = skb->data_end, data = skb->data;
	__u32 wanted = skb->len < PACKET_LINEAR_BYTES ? skb->len : PACKET_LINEAR_BYTES;

	/* Packet pointers subtract in 64 bits only; the compiler must not narrow them first. */
	barrier_var(end);
	barrier_var(data);
	if (packet_is_bundle(skb)) /* it would come apart in other places than it was put together */
		return false;
	return end - data < wanted && !bpf_skb_pull_data(skb, wanted);
}

#include "checksum.h"
#include "config.h"
#include "crc32c.h"
#include "device.h"
#include "route.h"

static __always_inline bool packet_is_for(const struct packet *packet, const struct device *device)
{
	struct ethhdr *ethernet;

	if (packet->context->pkt_type == PACKET_HOST)
		return true;
	if (!device->master)
		return false;
	ethernet = packet_at(packet, 0, sizeof(*ethernet));
	return ethernet && mac_equal(ethernet->h_dest, device->master_mac);
}

/*
 * A GSO packet is cut to segments behind us: only those meet the MTU. Those of SCTP are of any size, which nobody
 * tells us: its sender has made them for the path's MTU.
 */
static __always_inline __u16 packet_route_length(const struct packet *packet)
{
	__u32 gso_size = packet->context->gso_size;

	if (!gso_size)
		return packet->length;
	if (gso_size == GSO_BY_FRAGS)
		gso_size = 0;
	return packet->transport_offset - packet->ip_offset + packet->transport_length + gso_size;
}

static __always_inline __u32 transport_checksum_offset(__u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return __builtin_offsetof(struct tcphdr, check);
	if (protocol == IPPROTO_UDP)
		return __builtin_offsetof(struct udphdr, check);
	return __builtin_offsetof(struct sctp_header, checksum);
}

/*
 * Whether the packet's transport checksum, at `offset`, is partial. The helper leaves a partial checksum alone when
 * told of a change outside the pseudo header; so tell it of one, look, and take it back. Negative: it cannot be told.
 */
static __always_inline int checksum_is_partial(packet_context *skb, __u32 offset)
{
	__u16 *field = context_at(skb, offset, sizeof(*field));
	__u16 before;
	bool partial;

	if (!field)
		return -1;
	before = *field;
	if (bpf_l4_csum_replace(skb, offset, 0, 1, 0))
		return -1;
	field = context_at(skb, offset, sizeof(*field));
	if (!field)
		return -1;
	partial = *field == before;
	*field = before;
	return partial;
}

/*
 * Gives an SCTP packet of `length` bytes the checksum for ports that change by `change`. A partial checksum is for
 * the device to make, of the packet as it leaves: also that of a GSO packet, for each segment. A global function, so
 * that the verifier checks it once. 0: it cannot be done.
 */
__noinline int sctp_update_checksum(packet_context *skb, __u32 offset, __u32 length, __u32 change)
{
	int partial = checksum_is_partial(skb, offset + __builtin_offsetof(struct sctp_header, checksum));
	struct sctp_header *sctp;
	__u32 before;

	if (partial)
		return partial > 0;
	sctp = context_at(skb, offset, sizeof(*sctp));
	if (!sctp)
		return 0;
	before = sctp->checksum;
	sctp->checksum = before ^ crc32c_change(change, length);
	bpf_csum_update(skb, checksum_sum(checksum_delta(before, sctp->checksum)));
	return 1;
}

/*
 * A packet sent by this host may carry a partial checksum: the pseudo header's sum, for the device to
 * complete. The helper knows which it is, so addresses (part of the pseudo header) and ports go separately.
 */
static __always_inline bool packet_update_checksum(struct packet *packet, __u32 address_delta, __u32 port_delta)
{
	bool tcp = packet->key.protocol == IPPROTO_TCP;
	__u32 offset = packet->transport_offset +
		       (tcp ? __builtin_offsetof(struct tcphdr, check) : __builtin_offsetof(struct udphdr, check));
	__u64 flags = tcp ? 0 : BPF_F_MARK_MANGLED_0;
	__u64 pseudo = flags | BPF_F_PSEUDO_HDR | (packet->ipv6 && csum_ipv6_flag ? BPF_F_IPV6 : 0);

	if (bpf_l4_csum_replace(packet->context, offset, 0, address_delta, pseudo))
		return false;
	return !bpf_l4_csum_replace(packet->context, offset, 0, port_delta, flags);
}

/* The sum that a device has made of the whole packet, where nothing in the packet makes up for what has changed. */
static __always_inline void packet_update_sum(struct packet *packet, __u32 delta)
{
	bpf_csum_update(packet->context, delta);
}

/* Of a GSO packet each segment gets what is written there. */
static __always_inline bool packet_widen(struct packet *packet, __u32 size)
{
	__u64 flags = packet->ipv6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

	return !bpf_skb_adjust_room(packet->context, size, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_FIXED_GSO);
}

static __always_inline bool packet_can_send(const struct packet *packet, enum route_result result,
					    const struct route *route)
{
	return !packet->tagged && (result == ROUTE_OUT || result == ROUTE_NO_NEIGHBOUR || result == ROUTE_BY_ROUTER);
}

/*
 * bpf_redirect_neigh takes the Ethernet header off first, and drops a packet that has none: one that came by
 * a device without gets an empty one.
 */
static __always_inline bool packet_make_ethernet(struct packet *packet, const struct device *device)
{
	return !(device->flags & DEVICE_NO_ETHERNET) || !bpf_skb_change_head(packet->context, ETH_HLEN, 0);
}

/* Out by the route; the kernel resolves the next hop and writes the Ethernet header. */
static __always_inline int packet_send(struct packet *packet, const struct device *device, const struct route *route)
{
	struct bpf_redir_neigh next_hop = { .nh_family = route->fib.family };

	if (route->fib.family == ROUTE_AF_INET)
		next_hop.ipv4_nh = route->fib.ipv4_dst;
	else
		__builtin_memcpy(next_hop.ipv6_nh, route->fib.ipv6_dst, sizeof(next_hop.ipv6_nh));
	if (!packet_make_ethernet(packet, device))
		return PACKET_DROP;
	return bpf_redirect_neigh(route->fib.ifindex, &next_hop, sizeof(next_hop), 0);
}

/*
 * The same for a packet that is leaving by another route already. One that waits for its neighbour goes on by the
 * route that the kernel has noted for it, and would get the MAC of that one's next hop. So that route is made the
 * right one, which costs a second lookup.
 */
static __always_inline int packet_send_instead(struct packet *packet, const struct device *device,
					       enum route_result result, const struct route *route)
{
	if (result != ROUTE_NO_NEIGHBOUR)
		return packet_send(packet, device, route);
	if (!packet_make_ethernet(packet, device))
		return PACKET_DROP;
	return bpf_redirect_neigh(route->fib.ifindex, NULL, 0, 0);
}

/*
 * Ethernet headers here and there, and the MAC of a single neighbour: bpf_redirect_neigh, which sends what is sent by
 * a route, drops frames for a group.
 */
static __always_inline bool packet_has_hop(const struct device *device, enum route_result result,
					   const struct route *route)
{
	return result == ROUTE_OUT && !(device->flags & DEVICE_NO_ETHERNET) && !(route->fib.dmac[0] & 1) &&
	       device_has_ethernet(route->fib.ifindex);
}

static __always_inline bool packet_can_send_hop(const struct hop *hop)
{
	return true;
}

/*
 * Past the kernel's own table of neighbours, which is why hops are good for a moment only: packets that go by
 * packet_send() have the kernel make sure of the neighbour from time to time.
 */
static __always_inline int packet_send_hop(struct packet *packet, const struct hop *hop)
{
	if (!packet_write_macs(packet, hop->destination_mac, hop->source_mac))
		return PACKET_DROP;
	return bpf_redirect(hop->ifindex, 0);
}

/* Where answers go that a program makes of a packet: back out of the device that it came by. */
#ifndef PACKET_BACK
#define PACKET_BACK 0
#endif

/* To where it came from, by the device it is on. */
static __always_inline int packet_return(struct packet *packet, const struct device *device)
{
	struct ethhdr *ethernet;
	__u8 mac[ETH_ALEN];

	if (!(device->flags & DEVICE_NO_ETHERNET)) {
		ethernet = packet_at(packet, 0, sizeof(*ethernet));
		if (!ethernet)
			return PACKET_DROP;
		__builtin_memcpy(mac, ethernet->h_source, sizeof(mac));
		__builtin_memcpy(ethernet->h_source, ethernet->h_dest, sizeof(mac));
		__builtin_memcpy(ethernet->h_dest, mac, sizeof(mac));
	}
	return bpf_redirect(packet_ifindex(packet->context), PACKET_BACK);
}

#endif
