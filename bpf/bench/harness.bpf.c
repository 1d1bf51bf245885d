// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Makes a packet and hands it to the program that is measured. BPF_PROG_TEST_RUN does not reset the packet
 * between its repetitions: without this, all but the first would be measured on a packet already translated.
 *
 * A packet differs from the template in the low 16 bits of its source address and in its source port, which
 * say what flow it is of, and in the checksums over them. What all of this costs is measured with the empty
 * program behind it.
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

/* Restored before each run: at least all headers. */
#define TEMPLATE_BYTES 80

/* Ports below are never used; 15 bits of the flow's number are in the port, 16 in the address. */
#define PORT_FIRST 1024
#define PORT_BITS 15

/* The packet, with the source port and the low 16 bits of the source address 0, and checksums for that. */
const volatile __u8 template[TEMPLATE_BYTES] __attribute__((aligned(8)));

/* What the template is. */
const volatile bool ipv6 = false;
const volatile bool udp = false;

/* How many flows the packets are of, in an order without locality; 0: each is of a new one. */
const volatile __u32 flows = 1;

/* The number of the next packet. */
__u32 next_packet = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} measured SEC(".maps");

static __always_inline __u32 flow_number(void)
{
	__u32 number = next_packet++;

	/* The golden ratio visits [0, flows) evenly and far apart. */
	return flows ? (__u64)(number * 0x9e3779b1) * flows >> 32 : number;
}

static __always_inline void checksum_add(__u16 *field, __u32 sum)
{
	sum += (__u16) ~*field;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*field = ~sum;
}

static __always_inline void vary(void *packet, __u32 flow)
{
	__be16 port = bpf_htons(PORT_FIRST + (flow & ((1 << PORT_BITS) - 1)));
	__be16 address = bpf_htons(flow >> PORT_BITS);
	void *ip = packet + sizeof(struct ethhdr);
	void *transport = ip + (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));

	if (ipv6) {
		((struct ipv6hdr *)ip)->saddr.in6_u.u6_addr16[7] = address;
	} else {
		((__be16 *)&((struct iphdr *)ip)->saddr)[1] = address;
		checksum_add(&((struct iphdr *)ip)->check, address);
	}
	*(__be16 *)transport = port;
	checksum_add(udp ? &((struct udphdr *)transport)->check : &((struct tcphdr *)transport)->check,
		     (__u32)address + port);
}

static __always_inline bool make_packet(void *data, void *end)
{
	const volatile __u64 *from = (const volatile __u64 *)template;
	__u64 *to = data;
	int i;

	if (data + TEMPLATE_BYTES > end)
		return false;
#pragma unroll
	for (i = 0; i < TEMPLATE_BYTES / (int)sizeof(*to); i++)
		to[i] = from[i];
	vary(data, flow_number());
	return true;
}

SEC("xdp")
int harness_xdp(struct xdp_md *context)
{
	if (make_packet((void *)(long)context->data, (void *)(long)context->data_end))
		bpf_tail_call_static(context, &measured, 0);
	return XDP_ABORTED;
}

SEC("tc")
int harness_tc(struct __sk_buff *context)
{
	if (make_packet((void *)(long)context->data, (void *)(long)context->data_end))
		bpf_tail_call_static(context, &measured, 0);
	return TC_ACT_SHOT;
}

SEC("xdp")
int empty_xdp(struct xdp_md *context)
{
	return XDP_PASS;
}

SEC("tc")
int empty_tc(struct __sk_buff *context)
{
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
