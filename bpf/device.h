/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the agent says of the devices packets come by and go to. */
#ifndef WEIR_DEVICE_H
#define WEIR_DEVICE_H

#include "maps.h"
#include "packet.h"

static __always_inline struct device *device_find(__u32 ifindex)
{
	return bpf_map_lookup_elem(&devices, &ifindex);
}

/* The device as flows remember it: a port stands for its bridge or bond. */
static __always_inline __u32 device_logical(const struct device *device, __u32 ifindex)
{
	return device->master ? device->master : ifindex;
}

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a;
	const __u16 *y = (const __u16 *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* The node's address on the device, of the packet's family; zero if it has none. */
static __always_inline const struct address *device_address(const struct device *device, bool ipv6)
{
	return ipv6 ? &device->ipv6 : &device->ipv4;
}

#endif
