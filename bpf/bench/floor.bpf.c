// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The least any load balancer does with a packet of a flow it knows, written for this alone: what the real
 * programs are compared with. Two floors, each for both families and both hooks:
 *
 *	floor_parse	headers up to the ports
 *	floor_hit	that, one hit in an LRU hash, the destination rewritten with both checksums
 *
 * The key has 16 bytes for IPv4 and 40 for IPv6. No VLAN tags, IP options, extension headers or fragments,
 * no counters, no clocks, no TTL, no routing. tc writes directly as XDP does: packets sent by this host, with
 * a partial checksum, could not be treated so.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* What the floors end with, at both hooks, to tell a hit from everything else. */
#define PARSED 3
#define HIT 1
#define MISSED 2

struct key4 {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
};

struct value4 {
	__be32 destination;
	__be16 destination_port;
	__u16 pad;
};

struct key6 {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
};

struct value6 {
	__be32 destination[4];
	__be16 destination_port;
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct key4);
	__type(value, struct value4);
	__uint(max_entries, 524288);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct key6);
	__type(value, struct value6);
	__uint(max_entries, 524288);
} flows6 SEC(".maps");

/* The ports stand first in both transport headers. */
struct ports {
	__be16 source;
	__be16 destination;
};

/* Makes the compiler think that somebody reads the words. */
static __always_inline void keep(const void *words, __u32 size)
{
	const __u32 *word = words;
	__u32 i, value;

#pragma unroll
	for (i = 0; i < size / sizeof(*word); i++) {
		value = word[i];
		barrier_var(value);
	}
}

static __always_inline __u64 delta(__be32 from, __be32 to)
{
	return (__u64)(__u32)~from + to;
}

static __always_inline void checksum_update(__u16 *field, __u64 sum)
{
	sum += (__u16) ~*field;
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*field = ~sum;
}

/* The checksum field of the transport header, or NULL where the packet ends before it or is neither TCP nor UDP. */
static __always_inline __u16 *transport_checksum(struct ports *ports, __u32 protocol, void *end)
{
	struct tcphdr *tcp = (void *)ports;
	struct udphdr *udp = (void *)ports;

	if (protocol == IPPROTO_TCP)
		return (void *)(tcp + 1) > end ? NULL : &tcp->check;
	if (protocol == IPPROTO_UDP)
		return (void *)(udp + 1) > end ? NULL : &udp->check;
	return NULL;
}

static __always_inline int floor_ipv4(struct iphdr *ip, void *end, bool parse_only)
{
	struct ports *ports = (void *)(ip + 1);
	struct key4 key = {};
	struct value4 *to;
	__u16 *checksum;
	__u64 change;

	if ((void *)(ip + 1) > end || ip->ihl != 5)
		return MISSED;
	checksum = transport_checksum(ports, ip->protocol, end);
	if (!checksum)
		return MISSED;
	key.source = ip->saddr;
	key.destination = ip->daddr;
	key.source_port = ports->source;
	key.destination_port = ports->destination;
	key.protocol = ip->protocol;
	if (parse_only) {
		keep(&key, sizeof(key));
		return PARSED;
	}
	to = bpf_map_lookup_elem(&flows4, &key);
	if (!to)
		return MISSED;
	change = delta(key.destination, to->destination);
	checksum_update(&ip->check, change);
	checksum_update(checksum, change + delta(key.destination_port, to->destination_port));
	ip->daddr = to->destination;
	ports->destination = to->destination_port;
	return HIT;
}

static __always_inline int floor_ipv6(struct ipv6hdr *ip, void *end, bool parse_only)
{
	struct ports *ports = (void *)(ip + 1);
	struct key6 key = {};
	struct value6 *to;
	__u16 *checksum;
	__u64 change = 0;
	int i;

	if ((void *)(ip + 1) > end)
		return MISSED;
	checksum = transport_checksum(ports, ip->nexthdr, end);
	if (!checksum)
		return MISSED;
	__builtin_memcpy(key.source, &ip->saddr, sizeof(key.source));
	__builtin_memcpy(key.destination, &ip->daddr, sizeof(key.destination));
	key.source_port = ports->source;
	key.destination_port = ports->destination;
	key.protocol = ip->nexthdr;
	if (parse_only) {
		keep(&key, sizeof(key));
		return PARSED;
	}
	to = bpf_map_lookup_elem(&flows6, &key);
	if (!to)
		return MISSED;
#pragma unroll
	for (i = 0; i < 4; i++)
		change += delta(key.destination[i], to->destination[i]);
	checksum_update(checksum, change + delta(key.destination_port, to->destination_port));
	__builtin_memcpy(&ip->daddr, to->destination, sizeof(ip->daddr));
	ports->destination = to->destination_port;
	return HIT;
}

static __always_inline int floor_packet(void *data, void *end, bool parse_only)
{
	struct ethhdr *ethernet = data;

	if ((void *)(ethernet + 1) > end)
		return MISSED;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		return floor_ipv4((void *)(ethernet + 1), end, parse_only);
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		return floor_ipv6((void *)(ethernet + 1), end, parse_only);
	return MISSED;
}

SEC("xdp")
int floor_parse_xdp(struct xdp_md *context)
{
	return floor_packet((void *)(long)context->data, (void *)(long)context->data_end, true);
}

SEC("xdp")
int floor_hit_xdp(struct xdp_md *context)
{
	return floor_packet((void *)(long)context->data, (void *)(long)context->data_end, false);
}

SEC("tc")
int floor_parse_tc(struct __sk_buff *context)
{
	return floor_packet((void *)(long)context->data, (void *)(long)context->data_end, true);
}

SEC("tc")
int floor_hit_tc(struct __sk_buff *context)
{
	return floor_packet((void *)(long)context->data, (void *)(long)context->data_end, false);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
