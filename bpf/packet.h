/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet as all programs see it. Two headers implement its access to the kernel, packet_xdp.h and
 * packet_tc.h; a program includes one of them, and everything above is the same code:
 *
 *	packet_context			struct xdp_md or struct __sk_buff
 *	PACKET_PASS, PACKET_DROP	verdicts
 *	PACKET_IS_XDP			constant
 *	PACKET_PARSE_INLINE		whether the parser is inlined: 12 ns less, many states more to verify
 *	packet_cursor(context)		the data, from its first byte
 *	packet_wire_length(context)	bytes, also those that are not linear; at XDP those of the first buffer
 *	packet_is_scattered(context, end)	whether so many bytes are there, with those of other buffers
 *	packet_ifindex(context)		the device it is on
 *	packet_is_gso(context)		it stands for several segments
 *	packet_is_bundle(context)	for packets of SCTP, whose chunks must stay out of the linear part
 *	packet_protocol(context)	of a packet without Ethernet header
 *	packet_make_linear(context)	makes more of the data readable; false: all of it was
 *	packet_is_for(...)		whether its destination MAC is the device's or its master's
 *	packet_route_length(packet)	what the MTU of a route is compared with
 *	packet_update_checksum(...)	of the transport header of TCP or UDP, for changed addresses and ports
 *	sctp_update_checksum(...)	of SCTP, for changed ports
 *	packet_update_sum(...)		of the whole packet, where a device has made one
 *	packet_widen(packet, size)	makes room before the IP header; at XDP the Ethernet header loses its MACs
 *	packet_can_send(...)		whether packet_send would do
 *	packet_send(...)		out by a route
 *	packet_has_hop(...)		whether that has told all that packet_send_hop() needs
 *	packet_can_send_hop(...)	whether packet_send_hop would do
 *	packet_send_hop(...)		out by what is remembered of a route
 */
#ifndef WEIR_PACKET_H
#define WEIR_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "address.h"
#include "cursor.h"
#include "sctp.h"
#include "tuple.h"

/* Offsets into the packet stay below this; it tells the verifier so. */
#define PACKET_OFFSET_MASK 0x3fff

#define VLAN_TAGS_MAX 2
#define EXTENSIONS_MAX 4

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff
#define IPV4_DONT_FRAGMENT 0x4000
#define IPV6_OFFSET_MASK 0xfff8

/* What a packet is of a datagram. */
enum fragment_part {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST, /* with the transport header */
	FRAGMENT_LATER, /* without */
};

/* Which checksum its transport header has. */
enum packet_checksum {
	PACKET_CHECKSUM_INTERNET = 0, /* TCP and UDP: it covers the addresses, too */
	PACKET_CHECKSUM_CRC32C,	      /* SCTP */
	PACKET_CHECKSUM_ELSEWHERE,    /* a later fragment: the first has it */
};

struct packet {
	packet_context *context;
	struct flow_key key; /* its tuple, edge and protocol */
	__u32 ifindex;	     /* the device it is on, or the bridge or bond of which that is a port */
	__u32 length;	     /* of the IP packet, bytes */
	__u32 now;	     /* jiffies, low 32 bits: read once for a packet */
	__u16 ip_offset;
	__u16 transport_offset;
	__u8 transport_length; /* of the transport header */
	__u8 ttl;
	__u8 tcp_flags; /* of SCTP: what its first chunk says in these terms (sctp.h) */
	bool ipv6;
	__u8 tagged;	/* a VLAN tag stands before the IP header */
	__u8 fragment;	/* FRAGMENT_* */
	__u8 scattered; /* at XDP: it goes on in other buffers */
	__u8 checksum;	/* PACKET_CHECKSUM_* */
};

enum parse_result {
	PARSE_OK = 0,
	PARSE_NOT_OURS,	 /* not IP, or a protocol without ports */
	PARSE_ICMP,	 /* ICMP or ICMPv6; the packet has its addresses */
	PARSE_TUNNEL,	 /* IP in IP of the same family; as of ICMP */
	PARSE_TRUNCATED, /* the data that can be read ends inside a header */
	PARSE_MALFORMED, /* lengths or versions that contradict each other */
	PARSE_FRAGMENT,
	PARSE_EXTENSION, /* an IPv6 header chain too long or unknown */
};

/* No verdict: more of the packet can be read now than was before, and it has to be parsed anew. */
#define PACKET_AGAIN 0x106

/* No verdicts: the packet lies in the scratch for whoever goes on with it. */
#define PACKET_BEGINS 0x100 /* it is of no established flow */
#define PACKET_ICMP 0x101
#define PACKET_OF_HOST 0x102	/* between this host itself and a VIP: host.h, node_host.h */
#define PACKET_MOVES 0x103	/* to come by another device: move.h */
#define PACKET_FRAGMENT 0x104	/* a fragment, whose ports are not known yet: fragment.h */
#define PACKET_CUTS 0x105	/* to be cut to fragments: cut.h */
#define PACKET_TUNNELS 0x107	/* to go to its backend's node in a tunnel: tunnel.h */
#define PACKET_TUNNEL 0x108	/* a tunnel's: tunnel_arrive.h */
#define PACKET_OPENS 0x109	/* its flow is about to be opened: snat.h */
#define PACKET_TRANSLATES 0x10a /* its flow is known by now: flow_leave() */
#define PACKET_RESETS 0x10b	/* to be answered with a reset: reject.h */
#define PACKET_ERROR 0x10c	/* to be answered with an ICMP error: icmp.h */

struct vlan_header {
	__be16 tci;
	__be16 protocol;
};

/* An IPv6 extension header of the common form, RFC 6564; none is shorter. */
struct extension_header {
	__u8 next;
	__u8 length; /* in 8 bytes, not counting the first 8 */
	__u8 routing_type;
	__u8 routing_segments_left;
	__u8 rest[4];
};

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* and, in the last bit, that more come */
	__be32 id;
};

static __always_inline bool protocol_is_vlan(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD);
}

/*
 * The parse_* functions read at the cursor, move it behind what they read, and fill in the packet.
 * parse_ethernet returns the protocol behind the Ethernet header and its tags, or a negative number.
 */
static __always_inline int parse_ethernet(struct cursor *cursor, struct packet *packet)
{
	struct ethhdr *ethernet = cursor_take(cursor, sizeof(*ethernet));
	struct vlan_header *vlan;
	__be16 protocol;
	int i;

	if (!ethernet)
		return -1;
	protocol = ethernet->h_proto;
	packet->ip_offset = sizeof(*ethernet);
	for (i = 0; i < VLAN_TAGS_MAX && protocol_is_vlan(protocol); i++) {
		vlan = cursor_take(cursor, sizeof(*vlan));
		if (!vlan)
			return -1;
		protocol = vlan->protocol;
		packet->ip_offset += sizeof(*vlan);
		packet->tagged = true;
	}
	return protocol;
}

/* Whether all of the IP packet is there. */
static __always_inline bool packet_is_complete(struct packet *packet, __u32 available)
{
	if (packet->length <= available)
		return true;
	packet->scattered = packet_is_scattered(packet->context, packet->ip_offset + packet->length);
	return packet->scattered;
}

static __always_inline enum parse_result parse_ipv4(struct cursor *cursor, struct packet *packet, __u32 available)
{
	struct iphdr *ip = cursor_take(cursor, sizeof(*ip));
	__u32 header_length;

	if (!ip)
		return PARSE_TRUNCATED;
	header_length = ip->ihl * 4;
	if (ip->version != 4 || header_length < sizeof(*ip))
		return PARSE_MALFORMED;
	packet->length = bpf_ntohs(ip->tot_len);
	if (!packet->length && packet_is_gso(packet->context))
		packet->length = available; /* BIG TCP: longer than the field can say */
	if (!packet_is_complete(packet, available) || packet->length < header_length)
		return PARSE_MALFORMED;
	packet->ttl = ip->ttl;
	packet->key.protocol = ip->protocol;
	address_set_ipv4(&packet->key.tuple.source, ip->saddr);
	address_set_ipv4(&packet->key.tuple.destination, ip->daddr);
	packet->transport_offset = packet->ip_offset + header_length;
	cursor->position = (void *)ip + header_length;
	return ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK) ? PARSE_FRAGMENT : PARSE_OK;
}

/* Whether an IPv6 header is one that is walked over. */
static __always_inline bool is_extension(__u8 type)
{
	return type == IPPROTO_HOPOPTS || type == IPPROTO_ROUTING || type == IPPROTO_DSTOPTS;
}

/* Walks the extension headers before the transport header. `next` is the type of the first. */
static __always_inline enum parse_result parse_extensions(struct cursor *cursor, struct packet *packet, __u8 next)
{
	struct extension_header *extension;
	__u32 length;
	int i;

#pragma unroll
	for (i = 0; i < EXTENSIONS_MAX; i++) {
		if (next == IPPROTO_FRAGMENT)
			return PARSE_FRAGMENT;
		if (!is_extension(next))
			break;
		extension = cursor_take(cursor, sizeof(*extension));
		if (!extension)
			return PARSE_TRUNCATED;
		/* On its way to another node, whose address the transport checksum covers. */
		if (next == IPPROTO_ROUTING && extension->routing_segments_left)
			return PARSE_EXTENSION;
		next = extension->next;
		length = (extension->length + 1) * 8;
		packet->transport_offset += length;
		cursor->position = (void *)extension + length;
	}
	if (is_extension(next) || next == IPPROTO_FRAGMENT)
		return PARSE_EXTENSION;
	packet->key.protocol = next;
	return PARSE_OK;
}

static __always_inline enum parse_result parse_ipv6(struct cursor *cursor, struct packet *packet, __u32 available)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip)
		return PARSE_TRUNCATED;
	if (ip->version != 6)
		return PARSE_MALFORMED;
	packet->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (!ip->payload_len && packet_is_gso(packet->context))
		packet->length = available;
	if (!packet_is_complete(packet, available))
		return PARSE_MALFORMED;
	packet->ipv6 = true;
	packet->ttl = ip->hop_limit;
	address_set_ipv6(&packet->key.tuple.source, &ip->saddr);
	address_set_ipv6(&packet->key.tuple.destination, &ip->daddr);
	/* Never on the wire (RFC 4942, 2.2): it would be taken for a packet of an IPv4 flow. */
	if (address_is_ipv4(&packet->key.tuple.source) || address_is_ipv4(&packet->key.tuple.destination))
		return PARSE_MALFORMED;
	packet->transport_offset = packet->ip_offset + sizeof(*ip);
	return parse_extensions(cursor, packet, ip->nexthdr);
}

static __always_inline enum parse_result parse_tcp(struct cursor *cursor, struct packet *packet, __u32 available)
{
	struct tcphdr *tcp = cursor_take(cursor, sizeof(*tcp));

	if (!tcp)
		return available < sizeof(*tcp) ? PARSE_MALFORMED : PARSE_TRUNCATED;
	if (tcp->doff < 5 || tcp->doff * 4U > available)
		return PARSE_MALFORMED;
	packet->transport_length = tcp->doff * 4;
	packet->tcp_flags = ((__u8 *)tcp)[13];
	tuple_set_ports(&packet->key.tuple, *(const __be32 *)tcp);
	return PARSE_OK;
}

static __always_inline enum parse_result parse_udp(struct cursor *cursor, struct packet *packet, __u32 available)
{
	struct udphdr *udp = cursor_take(cursor, sizeof(*udp));
	__u32 length;

	if (!udp)
		return available < sizeof(*udp) ? PARSE_MALFORMED : PARSE_TRUNCATED;
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || length > available)
		return PARSE_MALFORMED;
	packet->transport_length = sizeof(*udp);
	tuple_set_ports(&packet->key.tuple, *(const __be32 *)udp);
	return PARSE_OK;
}

static __always_inline enum parse_result parse_sctp(struct cursor *cursor, struct packet *packet, __u32 available)
{
	struct sctp_packet *sctp;

	if (available < sizeof(*sctp))
		return PARSE_MALFORMED;
	sctp = cursor_take(cursor, sizeof(sctp->header));
	if (!sctp)
		return PARSE_TRUNCATED;
	packet->transport_length = sizeof(sctp->header);
	packet->tcp_flags = TCP_ACK; /* of a bundle, which is of data */
	packet->checksum = PACKET_CHECKSUM_CRC32C;
	tuple_set_ports(&packet->key.tuple, *(const __be32 *)sctp);
	if (packet_is_bundle(packet->context))
		return PARSE_OK;
	if (!cursor_take(cursor, sizeof(sctp->chunk)))
		return PARSE_TRUNCATED;
	if (sctp->chunk.type == SCTP_INIT && available < sizeof(struct sctp_init))
		return PARSE_MALFORMED;
	packet->tcp_flags = sctp_flags(sctp);
	return PARSE_OK;
}

/* What ICMP is called in the packet's family. */
static __always_inline __u8 packet_icmp_protocol(const struct packet *packet)
{
	return packet->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
}

/* And a packet of that family in another (RFC 2003, RFC 2473). */
static __always_inline __u8 packet_tunnel_protocol(const struct packet *packet)
{
	return packet->ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
}

/* What a packet is that has no ports. */
static __always_inline enum parse_result parse_other(const struct packet *packet)
{
	if (packet->key.protocol == packet_icmp_protocol(packet))
		return PARSE_ICMP;
	return packet->key.protocol == packet_tunnel_protocol(packet) ? PARSE_TUNNEL : PARSE_NOT_OURS;
}

/* The transport header, at the cursor, behind an IP header that has been read. */
static __always_inline enum parse_result parse_transport(struct cursor *cursor, struct packet *packet)
{
	__u32 header_length, available;

	if (packet->key.protocol != IPPROTO_TCP && packet->key.protocol != IPPROTO_UDP &&
	    packet->key.protocol != IPPROTO_SCTP)
		return parse_other(packet);
	header_length = packet->transport_offset - packet->ip_offset;
	if (header_length > packet->length)
		return PARSE_MALFORMED;
	available = packet->length - header_length;
	if (packet->key.protocol == IPPROTO_TCP)
		return parse_tcp(cursor, packet, available);
	if (packet->key.protocol == IPPROTO_UDP)
		return parse_udp(cursor, packet, available);
	return parse_sctp(cursor, packet, available);
}

static __always_inline enum parse_result packet_parse_once(struct packet *packet, bool ethernet)
{
	struct cursor cursor = packet_cursor(packet->context);
	enum parse_result result;
	__u32 available;
	int protocol;

	packet->ip_offset = 0;
	packet->tagged = false;
	packet->scattered = false;
	packet->ipv6 = false;
	packet->tcp_flags = 0;
	protocol = ethernet ? parse_ethernet(&cursor, packet) : packet_protocol(packet->context);
	if (protocol < 0)
		return PARSE_TRUNCATED;
	available = packet_wire_length(packet->context) - packet->ip_offset;
	if (protocol == bpf_htons(ETH_P_IP))
		result = parse_ipv4(&cursor, packet, available);
	else if (protocol == bpf_htons(ETH_P_IPV6))
		result = parse_ipv6(&cursor, packet, available);
	else
		return PARSE_NOT_OURS;
	return result == PARSE_OK ? parse_transport(&cursor, packet) : result;
}

/*
 * The same value, of which the verifier no longer knows anything. The ways through the parser differ in
 * offsets alone; behind it they shall be one state to check, not one for each combination of headers.
 */
static __always_inline __u16 verifier_forget(__u16 value, __u32 unknown)
{
	__u32 mixed = value ^ unknown;

	barrier_var(mixed);
	return mixed ^ unknown;
}

/*
 * Whether a helper takes so many bytes: from 1 to `most`. Compared in a way that tells every verifier both bounds:
 * those before Linux 6.8 learn nothing of a number that is not 0, nor of a difference that is compared, which
 * compilers make.
 */
static __always_inline bool length_is_within(__u32 *length, __u32 most)
{
	__u32 less = *length - 1;

	barrier_var(less);
	if (less >= most)
		return false;
	barrier_var(less);
	*length = less + 1;
	return true;
}

/* Fills in the packet from its headers. `ethernet`: it starts with an Ethernet header. */
static PACKET_PARSE_INLINE enum parse_result packet_parse(struct packet *packet, bool ethernet)
{
	__u32 unknown = packet_ifindex(packet->context);
	enum parse_result result;

	barrier_var(unknown);
	result = packet_parse_once(packet, ethernet);
	packet->ip_offset = verifier_forget(packet->ip_offset, unknown);
	packet->transport_offset = verifier_forget(packet->transport_offset, unknown);
	packet->transport_length = verifier_forget(packet->transport_length, unknown);
	packet->tagged = verifier_forget(packet->tagged, unknown);
	if (PACKET_IS_XDP)
		packet->scattered = verifier_forget(packet->scattered, unknown);
	return result;
}

static __always_inline bool packet_is_tcp(const struct packet *packet)
{
	return packet->key.protocol == IPPROTO_TCP;
}

/* Whether its protocol says where a connection begins and ends: TCP and SCTP. */
static __always_inline bool packet_is_of_connection(const struct packet *packet)
{
	return packet->key.protocol != IPPROTO_UDP;
}

/* The first packet of a connection: a SYN, an INIT. */
static __always_inline bool packet_is_syn(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* In the middle of a connection: it opens no flow, but where the table says who has the connection. */
static __always_inline bool packet_is_midstream(const struct packet *packet)
{
	return packet_is_of_connection(packet) && !packet_is_syn(packet);
}

/* The length of an IP header without options: what a tunnel puts before a packet, too. */
static __always_inline __u32 ip_header_length(bool ipv6)
{
	return ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* A pointer to `size` bytes at `offset`, or NULL. To be taken anew after any helper that writes to the packet. */
static __always_inline void *context_at(packet_context *context, __u32 offset, __u32 size)
{
	struct cursor cursor = packet_cursor(context);

	cursor.position += offset & PACKET_OFFSET_MASK;
	return cursor_take(&cursor, size);
}

static __always_inline void *packet_at(const struct packet *packet, __u32 offset, __u32 size)
{
	return context_at(packet->context, offset, size);
}

static __always_inline bool packet_write_macs(const struct packet *packet, const __u8 *destination,
					      const __u8 *source)
{
	struct ethhdr *ethernet = packet_at(packet, 0, sizeof(*ethernet));

	if (!ethernet)
		return false;
	__builtin_memcpy(ethernet->h_dest, destination, sizeof(ethernet->h_dest));
	__builtin_memcpy(ethernet->h_source, source, sizeof(ethernet->h_source));
	return true;
}

/* How long the packet is from the transport header on, if it is no fragment. */
static __always_inline __u32 packet_transport_bytes(const struct packet *packet)
{
	return packet->length - (packet->transport_offset - packet->ip_offset);
}

#endif
