/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments of datagrams, at tc. The first one has the ports: it goes on as a packet does, and map `fragments`
 * remembers its ports for the others, which go on with them, as packets whose transport header is elsewhere. What
 * comes before the first waits for it: fragment_wait.h.
 */
#ifndef WEIR_FRAGMENT_H
#define WEIR_FRAGMENT_H

#include "flow.h"
#include "leave.h"

/* The ports of a datagram count for so long: its identification may be another's then. */
#define FRAGMENT_SECONDS 2

static __always_inline __u32 fragment_seal(const struct fragment_key *key)
{
	return hash_words(key, sizeof(*key), 0);
}

static __always_inline bool fragment_parse_ipv4(struct packet *packet, struct fragment_key *key)
{
	struct iphdr *ip = packet_at(packet, packet->ip_offset, sizeof(*ip));

	if (!ip)
		return false;
	key->id = ip->id;
	packet->fragment = ip->frag_off & bpf_htons(IPV4_OFFSET_MASK) ? FRAGMENT_LATER : FRAGMENT_FIRST;
	return true;
}

/* Other extension headers than those before it are not looked for behind the fragment header. */
static __always_inline bool fragment_parse_ipv6(struct packet *packet, struct fragment_key *key)
{
	struct fragment_header *header = packet_at(packet, packet->transport_offset, sizeof(*header));

	if (!header)
		return false;
	key->id = header->id;
	packet->fragment = header->offset & bpf_htons(IPV6_OFFSET_MASK) ? FRAGMENT_LATER : FRAGMENT_FIRST;
	packet->key.protocol = header->next;
	packet->transport_offset += sizeof(*header);
	return true;
}

/* Fills in what the parser has left open. False: it is no fragment of a datagram with ports. */
static __always_inline bool fragment_parse(struct packet *packet, struct fragment_key *key)
{
	packet_make_linear(packet->context);
	if (packet->ipv6 ? !fragment_parse_ipv6(packet, key) : !fragment_parse_ipv4(packet, key))
		return false;
	key->source = packet->key.tuple.source;
	key->destination = packet->key.tuple.destination;
	key->edge = packet->key.edge;
	key->protocol = packet->key.protocol;
	if (packet->fragment == FRAGMENT_LATER)
		packet->checksum = PACKET_CHECKSUM_ELSEWHERE;
	return packet->key.protocol == IPPROTO_TCP || packet->key.protocol == IPPROTO_UDP;
}

/* The transport header of a first fragment. False: not all is there that is rewritten. */
static __always_inline bool fragment_parse_first(struct packet *packet)
{
	__u32 length = packet_is_tcp(packet) ? sizeof(struct tcphdr) : sizeof(struct udphdr);
	__be32 *ports = packet_at(packet, packet->transport_offset, sizeof(struct udphdr));
	struct tcphdr *tcp;

	if (!ports || packet->transport_offset + length > packet->ip_offset + packet->length)
		return false;
	packet->transport_length = length;
	packet->tcp_flags = 0;
	tuple_set_ports(&packet->key.tuple, *ports);
	if (!packet_is_tcp(packet))
		return true;
	tcp = packet_at(packet, packet->transport_offset, sizeof(*tcp));
	if (!tcp)
		return false;
	packet->tcp_flags = ((__u8 *)tcp)[13];
	return true;
}

/* What is known of a datagram; NULL: nothing, or it was another's. */
static __always_inline struct datagram *datagram_find(const struct fragment_key *key)
{
	struct datagram *datagram = bpf_map_lookup_elem(&fragments, key);

	if (!datagram || datagram->seal != fragment_seal(key) ||
	    flow_now() - datagram->seen > FRAGMENT_SECONDS * jiffies_per_second)
		return NULL;
	return datagram;
}

/* Gives a later fragment the ports of its datagram. */
static __always_inline enum datagram_state datagram_read(const struct fragment_key *key, struct packet *packet)
{
	struct datagram *datagram = datagram_find(key);
	enum datagram_state state;

	if (!datagram)
		return DATAGRAM_AWAITED;
	state = *(volatile __u32 *)&datagram->state;
	barrier();
	if (state == DATAGRAM_KNOWN)
		tuple_set_ports(&packet->key.tuple, datagram->ports);
	return state;
}

/* Notes what the first fragment says of its datagram. Returns how many others wait for it. */
static __always_inline __u32 datagram_note(const struct fragment_key *key, const struct packet *packet,
					   enum datagram_state state)
{
	struct datagram *waiting = datagram_find(key);
	struct datagram fresh = {
		.seal = fragment_seal(key),
		.seen = flow_now(),
		.state = state,
		.ports = tuple_ports(&packet->key.tuple),
	};
	__u32 held;

	if (!waiting) {
		bpf_map_update_elem(&fragments, key, &fresh, BPF_ANY);
		return 0;
	}
	waiting->ports = fresh.ports;
	waiting->seen = fresh.seen;
	barrier();
	*(volatile __u32 *)&waiting->state = state;
	barrier();
	held = *(volatile __u32 *)&waiting->held; /* one that comes to wait from here on, finds the state */
	waiting->held = 0;
	return held;
}

/* Not inlined: its stack shall not be that of whoever calls it, under whom others are called. */
static __noinline int fragment_drop(void)
{
	count(drop_fragment);
	return PACKET_DROP;
}

/* A fragment that has its ports goes on as a packet of which no flow has been looked for. */
static __always_inline int fragment_begins(const struct packet *packet)
{
	return scratch_save(packet) ? PACKET_BEGINS : PACKET_DROP;
}

#endif
