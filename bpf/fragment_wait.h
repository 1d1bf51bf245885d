/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments that come before the first of their datagram. Their bytes wait in map `held_fragments`; the first, when
 * it comes, sends itself and them into the same device again, to be met by the same program in the right order.
 * Programs cannot keep a packet; but what they write into one, and clone, is another.
 */
#ifndef WEIR_FRAGMENT_WAIT_H
#define WEIR_FRAGMENT_WAIT_H

#include "fragment.h"
#include "frontend.h"

/* Of one datagram: 64 KiB in packets of 1280 bytes, the smallest MTU of IPv6, take fewer. */
#define FRAGMENTS_HELD_MAX 64

/* Into the device again, the way that the packet goes. */
#define FRAGMENT_AGAIN (PACKET_BACK ^ BPF_F_INGRESS)

/* Where a fragment is copied to before it goes into the map; of the program at hand. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct held_fragment);
	__uint(max_entries, 1);
} held_copies SEC(".maps");

/* How often a place is asked for that another CPU takes at the same moment. */
#define FRAGMENT_PLACE_TRIES 4

/* A place among the held fragments of a datagram; FRAGMENTS_HELD_MAX: there is none. */
static __always_inline __u32 datagram_place(const struct fragment_key *key)
{
	struct datagram fresh = { .seal = fragment_seal(key), .seen = flow_now(), .state = DATAGRAM_AWAITED };
	struct datagram *datagram = datagram_find(key);
	__u32 i, place;

	if (!datagram) {
		bpf_map_update_elem(&fragments, key, &fresh, BPF_ANY);
		datagram = datagram_find(key);
	}
#pragma unroll
	for (i = 0; datagram && i < FRAGMENT_PLACE_TRIES; i++) {
		place = *(volatile __u32 *)&datagram->held;
		if (__sync_val_compare_and_swap(&datagram->held, place, place + 1) == place)
			return place;
	}
	return FRAGMENTS_HELD_MAX;
}

/* Copies a fragment into map held_fragments. */
static __always_inline bool fragment_store(packet_context *context, const struct held_key *key)
{
	__u32 length = packet_wire_length(context), zero = 0;
	struct held_fragment *copy = bpf_map_lookup_elem(&held_copies, &zero);

	if (!copy || !length_is_within(&length, sizeof(copy->bytes)))
		return false;
	copy->length = length;
	return !bpf_skb_load_bytes(context, 0, copy->bytes, length) &&
	       !bpf_map_update_elem(&held_fragments, key, copy, BPF_ANY);
}

/* Holds a fragment. False: there is no room. */
static __always_inline bool fragment_hold(packet_context *context, const struct held_key *key)
{
	return key->place < FRAGMENTS_HELD_MAX && fragment_store(context, key);
}

/* Sends a clone of the fragment that is held as scratch->held, written over this packet. Global: verified once. */
__noinline int fragment_release_scratch(packet_context *context)
{
	struct scratch *scratch = scratch_find();
	struct held_fragment *held;
	__u32 length;

	if (!scratch)
		return 0;
	held = bpf_map_lookup_elem(&held_fragments, &scratch->held);
	if (!held)
		return 0;
	length = held->length;
	if (!length_is_within(&length, sizeof(held->bytes)) || bpf_skb_change_tail(context, length, 0))
		return 0;
	if (!bpf_skb_store_bytes(context, 0, held->bytes, length, BPF_F_RECOMPUTE_CSUM))
		bpf_clone_redirect(context, packet_ifindex(context), FRAGMENT_AGAIN);
	bpf_map_delete_elem(&held_fragments, &scratch->held);
	return 0;
}

/*
 * The first fragment, for which others wait: it goes round again before them. Where that is at once, on the way out,
 * nothing waits for it any more, and it leaves scratch->held alone. Returns the verdict.
 */
static __always_inline int fragment_release(packet_context *context, struct scratch *scratch,
					    const struct fragment_key *key, __u32 waiting)
{
	__u32 i;

	scratch->held.datagram = *key;
	bpf_clone_redirect(context, packet_ifindex(context), FRAGMENT_AGAIN);
	for (i = 0; i < FRAGMENTS_HELD_MAX && i < waiting; i++) {
		scratch->held.place = i;
		fragment_release_scratch(context);
	}
	return PACKET_DROP;
}

static __always_inline int fragment_first(struct packet *packet, struct scratch *scratch,
					  const struct fragment_key *key)
{
	bool known = fragment_parse_first(packet);
	__u32 waiting = datagram_note(key, packet, known ? DATAGRAM_KNOWN : DATAGRAM_LEFT);

	if (waiting)
		return fragment_release(packet->context, scratch, key, waiting);
	return known ? fragment_begins(packet) : fragment_leave();
}

/*
 * Whether a datagram whose ports are not known may be for us. At the pod edge all of a datagram go this way;
 * elsewhere they may go another.
 */
static __always_inline bool fragment_may_be_ours(const struct packet *packet)
{
	const struct address *destination = &packet->key.tuple.destination;

	return packet->key.edge != EDGE_ID_NODE || bpf_map_lookup_elem(&vips, destination) ||
	       address_is_of_node(destination);
}

/* A fragment that cannot wait. Sent to a VIP it is ours; another goes on as if we were not there. */
static __always_inline int fragment_refuse(const struct packet *packet)
{
	return bpf_map_lookup_elem(&vips, &packet->key.tuple.destination) ? fragment_drop() : fragment_leave();
}

/* A fragment without ports. */
static __always_inline int fragment_later(struct packet *packet, struct scratch *scratch,
					  const struct fragment_key *key)
{
	enum datagram_state state = datagram_read(key, packet);

	if (state == DATAGRAM_AWAITED && fragment_may_be_ours(packet)) {
		scratch->held.datagram = *key;
		scratch->held.place = datagram_place(key);
		if (!fragment_hold(packet->context, &scratch->held))
			return fragment_refuse(packet);
		/* The first may have come meanwhile, and not have taken this one with it. */
		state = datagram_read(key, packet);
		if (state == DATAGRAM_AWAITED || bpf_map_delete_elem(&held_fragments, &scratch->held)) {
			count(fragment_held);
			return PACKET_DROP;
		}
	}
	return state == DATAGRAM_KNOWN ? fragment_begins(packet) : fragment_leave();
}

/* Handles scratch->packet, a fragment. Returns PACKET_BEGINS: the scratch has it with its ports. Else the verdict. */
__noinline int fragment_scratch(packet_context *context)
{
	struct packet packet = {};
	struct device *device;
	struct scratch *scratch = packet_resume(&packet, context, &device);
	struct fragment_key key = {};

	if (!scratch || (FRAGMENT_AGAIN == BPF_F_INGRESS && !packet_is_for(&packet, device)) ||
	    !fragment_parse(&packet, &key))
		return fragment_leave();
	if (packet.fragment == FRAGMENT_FIRST)
		return fragment_first(&packet, scratch, &key);
	return fragment_later(&packet, scratch, &key);
}

#endif
