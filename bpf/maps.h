/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map, with who writes it, who reads it and how long an entry lives. All are pinned under
 * <bpffs>/weir/, and outlive the agent. max_entries are defaults: the agent sets them when it creates the
 * maps (maps/sizes.go).
 */
#ifndef WEIR_MAPS_H
#define WEIR_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

/*
 * What clients may send to. Written by the agent; read by programs when a packet has no flow. An entry
 * lives as long as the Service port it stands for. Full: the agent reports the Services left out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(max_entries, 131072);
} frontends SEC(".maps");

/*
 * Addresses that frontends have, but NodePorts -> VIP_*. Written by the agent after the frontends; read by programs
 * where there is no port to look at: pings, and fragments that come out of order. Full: the agent reports it, and
 * such packets are left alone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, 131072);
} vips SEC(".maps");

/*
 * Written by the agent, only at indices that no frontend names; read by programs when a flow is born.
 * An index is reused after a grace period. Index 0 is never used.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct service);
	__uint(max_entries, 131072);
} services SEC(".maps");

/* Index into services -> name. Written by the agent with the record; read by the CLI and a new agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct service_name);
	__uint(max_entries, 131072);
} service_names SEC(".maps");

/*
 * Who may use the load balancer addresses of services that have SERVICE_SOURCE_RANGES. Written by the agent,
 * before the record that has the flag and until after the last; read by programs when a flow of such a service is
 * born. Full: nobody may, and the agent reports it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, __u32);
	__uint(max_entries, 65536);
} sources SEC(".maps");

/*
 * Addresses of Services, and prefixes of ServiceCIDRs: what becomes of packets that no frontend is for. Written by
 * the agent; read by programs where there is neither a flow nor a frontend, and the address is within the bounds. An
 * entry lives as long as the Service or the ServiceCIDR. Full: the agent reports it, and the address is left alone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, enum cluster_ip_use);
	__uint(max_entries, 131072);
} cluster_ips SEC(".maps");

/*
 * Between what cluster_ips has, IPv4 and IPv6: packets to anywhere else are not looked up there. Written by the agent
 * before cluster_ips; read by programs. One that reads a half-written element looks up in vain, or lets a packet
 * pass.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct address_bounds);
	__uint(max_entries, 2);
} cluster_bounds SEC(".maps");

/*
 * Whose packets count as inside, though they arrive at the node edge: addresses of pods, of this node or others, as
 * detectLocalMode says. Written by the agent; read by programs when a flow is born there, and the mode goes by
 * sources. An entry lives as long as the prefix is configured, or the Node's.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, __u32);
	__uint(max_entries, 64);
} inside_sources SEC(".maps");

/*
 * Destinations of outgoing policies of XFRM. Written by the agent; read by programs where live_config says that there
 * are any. An entry lives as long as a policy to there. Full: all destinations count, and the agent reports it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, __u32);
	__uint(max_entries, 4096);
} xfrm_prefixes SEC(".maps");

/*
 * The arena of selection tables. Written by the agent as memory (it maps the array), only in ranges that
 * no service record names; read by programs when a flow is born.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct slot_block);
	__uint(max_entries, 262144);
} slots SEC(".maps");

/*
 * Written by the agent before the first table that names an index, cleared after the last table and the
 * last flow that name it; read by programs when a flow is born. Index 0 is never used.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct backend);
	__uint(max_entries, 131072);
} backends SEC(".maps");

/*
 * By backend index. `flows` and `sockets` are written by programs, `counted` by the sweep, `correction` by the agent,
 * as memory; read by programs when a flow of a service with least-connections is born. Zeroed by the agent when an
 * index is given out again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct backend_load);
	__uint(max_entries, 131072);
} backend_loads SEC(".maps");

/*
 * By backend index: who has had no answer of it. Written by programs when a SYN is sent again and when a backend
 * answers; read by them when a flow is born, and by the CLI and the metrics. Counts for the generation it names.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct health);
	__uint(max_entries, 131072);
} backend_health SEC(".maps");

/*
 * Which backend a client has had of a service with affinity. Written by programs when a flow of such a service is
 * born, read before the next one is. An entry counts for as long as the service says, and is evicted when others
 * are younger, which costs the client a new choice: counters.affinity_new.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct affinity_key);
	__type(value, struct affinity_entry);
	__uint(max_entries, 131072);
} affinity SEC(".maps");

/*
 * Flows that both sides have agreed to: two entries each, and the foreign ones: one. Written by programs
 * (flow_table.h); removed by the sweep. Never an LRU, which would evict the half that is not read. Full: the
 * new flow is refused and counted, the established ones stay.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct flow_key_ipv4);
	__type(value, struct flow);
	__uint(max_entries, 524288);
} flows_ipv4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(max_entries, 262144);
} flows_ipv6 SEC(".maps");

/*
 * Flows whose client has not been heard again since the backend's answer. Written by programs (flow.h). An
 * entry moves to the flow table with the client's first answer, or is evicted by younger ones: a SYN flood
 * churns this map alone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(max_entries, 131072);
} embryos SEC(".maps");

/*
 * When a flow moved to the flow table last, in jiffies, low 32 bits. One entry. Written by programs, once a tick at
 * most; read by those that have found a packet's flow in neither place (embryo.h).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} last_move SEC(".maps");

/*
 * The ports of datagrams that come in fragments. Written and read by programs (fragment.h); an entry counts for two
 * seconds, and is evicted when others are younger, which costs the datagram.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct datagram);
	__uint(max_entries, 8192);
} fragments SEC(".maps");

/*
 * Fragments that have come before the first of their datagram. Written and read by programs; an entry goes with the
 * first, or is evicted when others are younger, which costs the datagram.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct held_key);
	__type(value, struct held_fragment);
	__uint(max_entries, 1024);
} held_fragments SEC(".maps");

/*
 * Connected sockets of the socket edge: what the application believes its peer to be. Written at connect(),
 * read by getpeername(), recvmsg() and the agent's search for sockets of removed backends; goes with the
 * socket.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_peer);
} socket_peers SEC(".maps");

/*
 * Unconnected UDP sockets: two entries for each frontend a socket sends to, one each way. Written by
 * sendmsg(), read by sendmsg() and recvmsg(), removed when the socket is released; evicted when others are
 * younger, which costs the socket a new choice of backend.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct socket_key);
	__type(value, struct socket_flow);
	__uint(max_entries, 65536);
} socket_flows SEC(".maps");

/* Where the entries of a socket in socket_flows are found when it is released. Written by sendmsg(); goes with the
 * socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_latest);
} socket_latests SEC(".maps");

/*
 * The network namespaces of this host, by cookie. Written by the agent as it finds them; read by the socket
 * edge, which leaves the sockets of those that are not here to the packet edges. Full: the agent reports it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct network_namespace);
	__uint(max_entries, 16384);
} namespaces SEC(".maps");

/*
 * Cgroups whose sockets are left to the packet edges, by id: those of pods in the node's network namespace
 * that ask for it. Written by the agent; read at the socket edge where NAMESPACE_CGROUPS says so.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
	__uint(max_entries, 1024);
} left_cgroups SEC(".maps");

/*
 * ClusterIPs that are local addresses of network namespaces -> ifindex of the device. Written by the agent; read
 * by the socket edge and the pod edge, which leave them alone where a socket listens there. Full: the agent
 * reports it, and such an address is served.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct local_vip);
	__type(value, __u32);
	__uint(max_entries, 1024);
} local_vips SEC(".maps");

/* By ifindex. Written by the agent, follows the links of the node; read by programs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct device_record);
	__uint(max_entries, 16384);
} devices SEC(".maps");

/* Devices that an XDP program may redirect to: those with XDP of ours attached. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 256);
} xdp_devices SEC(".maps");

/* Addresses on which NodePorts answer. Written by the agent, follows the addresses of the node. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, 4096);
} node_addrs SEC(".maps");

/*
 * Addresses that other nodes' tunnels come from (DSR). Written by the agent, follows the Nodes; read by programs when
 * IP in IP arrives: from any other address it is left alone. Full: the agent reports it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, 65536);
} tunnel_sources SEC(".maps");

/*
 * Clients that no tunnel is for, as they may be on the backend's own node: other nodes, and prefixes of their pods
 * that a bridge connects (DSR). Written by the agent, follows the Nodes; read by programs when a flow is born that
 * would go in a tunnel. Full: the agent reports it, and such a client's first SYN is lost.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix_key);
	__type(value, __u32);
	__uint(max_entries, 65536);
} tunnel_exempt SEC(".maps");

/*
 * The backends of this node that other nodes' tunnels lead to -> backend index. Written by the agent after the
 * backend, deleted before its index is given to another; read by programs when IP in IP arrives. The record in
 * backends says whether it is still that one. Full: the agent reports it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tunnel_target);
	__type(value, __u32);
	__uint(max_entries, 16384);
} tunnel_targets SEC(".maps");

/* One entry. Written by programs; read by the CLI and the metrics. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct packet_counters);
	__uint(max_entries, 1);
} counters SEC(".maps");

/* By service id. Written by programs, zeroed by the agent when an id is given out again. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(max_entries, 131072);
} service_stats SEC(".maps");

/* By backend index. As service_stats. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(max_entries, 131072);
} backend_stats SEC(".maps");

/*
 * The last sweep epoch in which a live flow named the service id / the backend index. Written by the
 * sweep; read by the agent, which frees an index when a whole sweep has passed without a mention.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 131072);
} service_usage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 131072);
} backend_usage SEC(".maps");

/*
 * Whose flows end though they are busy. Written by the agent when a backend leaves a service, deleted when two sweeps
 * have gone by it since it was due, or the backend is back; read by the sweep. Full: the agent logs it, and flows end
 * when they are idle.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct ending_key);
	__type(value, struct ending);
	__uint(max_entries, 131072);
} endings SEC(".maps");

/* One entry. Written by the agent before a sweep; read by the sweep programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct sweep_settings);
	__uint(max_entries, 1);
} sweep_config SEC(".maps");

/* One entry. Written by the agent; read by programs off the hot path. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct live_settings);
	__uint(max_entries, 1);
} live_config SEC(".maps");

/* One entry. Written and read by the agent: what its successor must know of the maps and programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct agent_record);
	__uint(max_entries, 1);
} agent_state SEC(".maps");

#endif
