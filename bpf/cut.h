/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets that are too long for their way, and whose sender lets routers cut them (RFC 791, 3.2; RFC 1812, 4.2.2.7).
 * The stack does that with what it forwards; what programs redirect nobody cuts. So the packet is translated, its
 * payload copied, and each piece written into the packet behind the IP header, and sent as a clone of it. At tc
 * alone.
 *
 * Not cut, and answered as if the sender had forbidden it: packets with IP options, longer than CUT_BYTES_MAX, or of
 * more pieces than CUT_PIECES_MAX; whose checksum is left to a device; or whose next hop's MAC is not known yet.
 */
#ifndef WEIR_CUT_H
#define WEIR_CUT_H

#include "flow.h"
#include "node_translate.h"

/* Into how many pieces, and for what MTU: every link takes as much (RFC 791, 3.2). */
#define CUT_PIECES_MAX 32
#define CUT_MTU_MIN 68

/* A piece is never longer than the packet; the arithmetic of the verifier wants room for both. */
struct cut_copy {
	__u8 bytes[2 * CUT_BYTES_MAX];
};

/* The payload of the packet at hand. One per CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct cut_copy);
	__uint(max_entries, 1);
} cut_copies SEC(".maps");

static __always_inline struct cut_copy *cut_copy_find(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cut_copies, &zero);
}

/* Copies what is behind the IP header. */
static __always_inline bool cut_store(const struct packet *packet, __u32 length)
{
	struct cut_copy *copy = cut_copy_find();

	if (!copy || !length_is_within(&length, CUT_BYTES_MAX))
		return false;
	return !bpf_skb_load_bytes(packet->context, packet->ip_offset + sizeof(struct iphdr), copy->bytes, length);
}

/* Makes the IP header that of a piece: of `length` bytes, from cut->offset on. */
static __always_inline bool cut_write_header(struct packet *packet, const struct cut *cut, __u32 length, bool last)
{
	struct iphdr *ip = packet_at(packet, packet->ip_offset, sizeof(*ip));
	__be16 total = bpf_htons(sizeof(*ip) + length);
	__be16 field = bpf_htons(bpf_ntohs(cut->field) + cut->offset / 8);
	__u64 delta;

	if (!ip)
		return false;
	if (!last)
		field |= bpf_htons(IPV4_MORE_FRAGMENTS);
	delta = checksum_delta(ip->tot_len, total) + checksum_delta(ip->frag_off, field);
	ip->tot_len = total;
	ip->frag_off = field;
	ip->check = checksum_apply(ip->check, checksum_sum(delta));
	return true;
}

/* Sends the piece of scratch->packet that scratch->cut says. 0: it is the last. Global: verified once. */
__noinline int cut_piece_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct cut_copy *copy = cut_copy_find();
	struct packet packet = {};
	__u32 offset, length;
	struct cut *cut;
	bool last;

	if (!scratch || !copy)
		return 0;
	scratch_load(&packet, context, scratch);
	cut = &scratch->cut;
	offset = cut->offset;
	if (offset >= cut->total)
		return 0;
	length = cut->total - offset;
	last = length <= cut->piece;
	if (!last)
		length = cut->piece;
	if (offset >= CUT_BYTES_MAX || !length_is_within(&length, CUT_BYTES_MAX) ||
	    bpf_skb_change_tail(context, packet.ip_offset + sizeof(struct iphdr) + length, 0) ||
	    bpf_skb_store_bytes(context, packet.ip_offset + sizeof(struct iphdr), copy->bytes + offset, length, 0) ||
	    !cut_write_header(&packet, cut, length, last))
		return 0;
	bpf_clone_redirect(context, cut->ifindex, cut->again ? BPF_F_INGRESS : 0);
	cut->offset = offset + length;
	return !last;
}

/* How much behind the IP header goes in a piece. */
static __always_inline __u32 cut_piece(__u32 mtu)
{
	return (mtu - sizeof(struct iphdr)) & ~7U;
}

static __always_inline bool cut_is_possible(const struct packet *packet, __u32 mtu)
{
	return mtu >= CUT_MTU_MIN && packet->length <= CUT_PIECES_MAX * cut_piece(mtu);
}

/* Where the pieces go; false: that cannot be told now. Those of a tunnel's flow come here again. */
static __always_inline bool cut_route(struct packet *packet, struct flow_view *view, __u32 mtu, struct route *route)
{
	__u32 length = packet->length;
	enum route_result result;

	if (view->action == FLOW_TUNNEL)
		return true;
	packet->length = mtu;
	result = node_route(packet, view, route);
	packet->length = length;
	return result == ROUTE_OUT;
}

/* Whether the checksum of a packet's first part is complete; later fragments have none. */
static __always_inline bool cut_has_checksum(struct packet *packet)
{
	__u32 field = transport_checksum_offset(packet->key.protocol);

	return packet->fragment == FRAGMENT_LATER ||
	       checksum_is_partial(packet->context, packet->transport_offset + field) == 0;
}

static __always_inline int cut_fail(void)
{
	count(drop_rewrite_failed);
	return PACKET_DROP;
}

/* Makes the packet one of which pieces can be sent. A tunnel's are put into it one by one (tunnel.h). */
static __always_inline bool cut_translate(struct packet *packet, struct cut *cut, const struct flow_view *view,
					  const struct route *route)
{
	cut->again = view->action == FLOW_TUNNEL;
	if (cut->again) {
		cut->ifindex = packet_ifindex(packet->context);
		return true;
	}
	cut->ifindex = route->fib.ifindex;
	return nat_rewrite(packet, &view->to, true) && packet_write_macs(packet, route->fib.dmac, route->fib.smac);
}

/* What the pieces of a packet have in common. */
static __always_inline bool cut_begin(struct packet *packet, struct scratch *scratch)
{
	struct iphdr *ip = packet_at(packet, packet->ip_offset, sizeof(*ip));
	struct cut *cut = &scratch->cut;

	if (!ip)
		return false;
	cut->field = ip->frag_off;
	cut->offset = 0;
	cut->total = packet->length - sizeof(*ip);
	cut->piece = cut_piece(cut->mtu);
	return cut_store(packet, cut->total);
}

/* Handles scratch->packet, of a flow, which is too long for its way: scratch->cut.mtu. Returns the verdict. */
__noinline int cut_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct flow_view view = {};
	struct route route;
	__u32 i;

	if (!scratch)
		return PACKET_DROP;
	if (device->flags & DEVICE_NO_ETHERNET || !flow_find(&packet.key, &view) ||
	    !cut_is_possible(&packet, scratch->cut.mtu) || !cut_route(&packet, &view, scratch->cut.mtu, &route) ||
	    !cut_has_checksum(&packet))
		return reply_too_big(&packet, device, scratch->cut.mtu);
	if (!cut_translate(&packet, &scratch->cut, &view, &route) || !cut_begin(&packet, scratch))
		return cut_fail();
	count(packet_cut);
	for (i = 0; i < CUT_PIECES_MAX && cut_piece_scratch(context); i++)
		;
	return PACKET_DROP;
}

#endif
