/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the agent says of the devices packets come by and go to. */
#ifndef WEIR_DEVICE_H
#define WEIR_DEVICE_H

#include "config.h"
#include "hash.h"
#include "maps.h"
#include "packet.h"

static __always_inline bool device_is_known(__u32 ifindex)
{
	return bpf_map_lookup_elem(&devices, &ifindex) != NULL;
}

/*
 * Whether frames have an Ethernet header there. Of a device that is not known nobody can tell. It never changes, so
 * that neither the lock nor the seal is needed.
 */
static __always_inline bool device_has_ethernet(__u32 ifindex)
{
	struct device_record *record = bpf_map_lookup_elem(&devices, &ifindex);

	return record && !(record->device.flags & DEVICE_NO_ETHERNET);
}

/* Copies what is said of a device. False: it is not known, or goes just now; then the copy means nothing. */
static __noinline bool device_read(__u32 ifindex, struct device *device)
{
	struct device_record *record = bpf_map_lookup_elem(&devices, &ifindex);
	__u32 seal;

	if (!record)
		return false;
	bpf_spin_lock(&record->lock);
	*device = record->device;
	seal = record->seal;
	bpf_spin_unlock(&record->lock);
	return seal == hash_words(device, sizeof(*device), ifindex);
}

/*
 * The records of the devices that packets came by last: a lookup in a hash costs every packet as much as its
 * flow does. One per CPU and program, by the low bits of the ifindex. Written and read by the programs; an
 * entry is believed for a moment, then read again.
 */
#define DEVICE_CACHE_SIZE 64

struct device_cache {
	__u32 ifindex;
	__u32 read; /* jiffies, low 32 bits */
	struct device device;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct device_cache);
	__uint(max_entries, DEVICE_CACHE_SIZE);
} device_caches SEC(".maps");

/* The device a packet is on; NULL: none of ours. `now` in jiffies. */
static __always_inline struct device *device_of_packet(packet_context *context, __u32 now)
{
	__u32 ifindex = packet_ifindex(context), slot = ifindex % DEVICE_CACHE_SIZE;
	struct device_cache *cache = bpf_map_lookup_elem(&device_caches, &slot);

	if (!cache)
		return NULL;
	if (cache->ifindex == ifindex && now - cache->read < BELIEVE_JIFFIES)
		return &cache->device;
	cache->ifindex = 0;
	if (!device_read(ifindex, &cache->device))
		return NULL;
	cache->ifindex = ifindex;
	cache->read = now;
	return &cache->device;
}

/* The device as flows remember it: a port stands for its bridge or bond. */
static __always_inline __u32 device_logical(const struct device *device, __u32 ifindex)
{
	return device->master ? device->master : ifindex;
}

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	return !((*(const __u32 *)a ^ *(const __u32 *)b) | (*(const __u16 *)(a + 4) ^ *(const __u16 *)(b + 4)));
}

/* The node's address on the device, of the packet's family; zero if it has none. */
static __always_inline const struct address *device_address(const struct device *device, bool ipv6)
{
	return ipv6 ? &device->ipv6 : &device->ipv4;
}

/* The router at the other end of the device; zero if none is known. */
static __always_inline const struct address *device_router(const struct device *device, bool ipv6)
{
	return ipv6 ? &device->router_ipv6 : &device->router_ipv4;
}

#endif
