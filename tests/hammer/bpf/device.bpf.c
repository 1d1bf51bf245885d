// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Reads the record of one device as the programs do. Those that the test writes say one number everywhere, a multiple
 * of the ifindex: what does not is parts of two.
 */
#include <linux/bpf.h>

#include "packet_xdp.h"

#include "device.h"

/* How often a run reads. */
#define READS 256

const volatile __u32 ifindex = 1;

__u64 whole, torn, others, missed;

static __always_inline bool is_whole(const struct device *device)
{
	__u32 number = device->master;
	const __u32 *ipv4 = (const __u32 *)device->ipv4.bytes;
	const __u32 *ipv6 = (const __u32 *)device->ipv6.bytes;

	return ipv4[0] == number && ipv4[3] == number && ipv6[0] == number && ipv6[3] == number &&
	       *(const __u16 *)device->mac == (__u16)number && device->edge_id == (__u16)number;
}

/* A global function: it is verified once, and not for every time that it is called. */
__noinline int read_once(void)
{
	struct device device;

	if (!device_read(ifindex, &device))
		missed++;
	else if (!is_whole(&device))
		torn++;
	else if (device.master % ifindex)
		others++;
	else
		whole++;
	return 0;
}

SEC("xdp")
int read_device(struct xdp_md *context)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < READS; i++)
		read_once();
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
