/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A stand-in for somebody else's stateful network policy, as a CNI attaches it to a device: it remembers
 * the flows that it saw begin, and drops every TCP and UDP packet of other flows. It works only if it sees both
 * directions of a connection under the same addresses.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NEXT -1 /* TCX_NEXT, TC_ACT_UNSPEC */
#define DROP 2	/* TCX_DROP, TC_ACT_SHOT */

/* In wire order; IPv4 addresses are the first four bytes of a zeroed address. */
struct connection {
	__u8 source[16];
	__u8 destination[16];
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};

/* Flows that began, keyed as in their first packet. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct connection);
	__type(value, __u64);
	__uint(max_entries, 4096);
} connections SEC(".maps");

/* What was dropped. Written here, read by the test. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct connection);
	__type(value, __u64);
	__uint(max_entries, 256);
} dropped SEC(".maps");

struct packet {
	struct connection connection;
	int opens; /* may begin a flow: a SYN, or any datagram */
};

static int load_ports(struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	struct tcphdr tcp;

	/* Source and destination port stand at the same place in both headers. */
	if (bpf_skb_load_bytes(skb, offset, &packet->connection.source_port, 4))
		return -1;
	packet->opens = packet->connection.protocol == IPPROTO_UDP;
	if (packet->opens)
		return 0;
	if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)))
		return -1;
	packet->opens = tcp.syn && !tcp.ack;
	return 0;
}

/* Returns 0 for a TCP or UDP packet without options or extension headers. */
static int load_packet(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv6hdr ipv6;
	struct iphdr ip;

	__builtin_memset(packet, 0, sizeof(*packet));
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
			return -1;
		__builtin_memcpy(packet->connection.source, &ip.saddr, sizeof(ip.saddr));
		__builtin_memcpy(packet->connection.destination, &ip.daddr, sizeof(ip.daddr));
		packet->connection.protocol = ip.protocol;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes_relative(skb, 0, &ipv6, sizeof(ipv6), BPF_HDR_START_NET))
			return -1;
		__builtin_memcpy(packet->connection.source, &ipv6.saddr, sizeof(ipv6.saddr));
		__builtin_memcpy(packet->connection.destination, &ipv6.daddr, sizeof(ipv6.daddr));
		packet->connection.protocol = ipv6.nexthdr;
	} else {
		return -1;
	}
	if (packet->connection.protocol != IPPROTO_TCP && packet->connection.protocol != IPPROTO_UDP)
		return -1;
	return load_ports(skb, ETH_HLEN + (skb->protocol == bpf_htons(ETH_P_IP) ? sizeof(ip) : sizeof(ipv6)), packet);
}

static struct connection reverse(const struct connection *connection)
{
	struct connection reversed = {};

	__builtin_memcpy(reversed.source, connection->destination, sizeof(reversed.source));
	__builtin_memcpy(reversed.destination, connection->source, sizeof(reversed.destination));
	reversed.source_port = connection->destination_port;
	reversed.destination_port = connection->source_port;
	reversed.protocol = connection->protocol;
	return reversed;
}

static int drop(const struct connection *connection)
{
	__u64 one = 1, *count = bpf_map_lookup_elem(&dropped, connection);

	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&dropped, connection, &one, BPF_NOEXIST);
	return DROP;
}

/* The direction in which flows may begin. */
SEC("tc")
int policy_open(struct __sk_buff *skb)
{
	struct packet packet;
	__u64 one = 1;

	if (load_packet(skb, &packet))
		return NEXT;
	if (bpf_map_lookup_elem(&connections, &packet.connection))
		return NEXT;
	if (!packet.opens)
		return drop(&packet.connection);
	bpf_map_update_elem(&connections, &packet.connection, &one, BPF_NOEXIST);
	return NEXT;
}

/* The other direction: only what belongs to a flow that began. */
SEC("tc")
int policy_reply(struct __sk_buff *skb)
{
	struct connection begun;
	struct packet packet;

	if (load_packet(skb, &packet))
		return NEXT;
	begun = reverse(&packet.connection);
	if (bpf_map_lookup_elem(&connections, &begun))
		return NEXT;
	return drop(&packet.connection);
}

char LICENSE[] SEC("license") = "GPL";
