/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is fixed when the programs are loaded. The loader sets each by its name; the verifier then prunes
 * what a constant rules out.
 */
#ifndef WEIR_CONFIG_H
#define WEIR_CONFIG_H

#include <stdbool.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>

/* The source ports SNAT hands out, both ends included, host order. */
const volatile __u16 snat_port_min = 61000;
const volatile __u16 snat_port_max = 65535;

static __always_inline bool snat_port_in_range(__be16 port)
{
	__u16 host = bpf_ntohs(port);

	return host >= snat_port_min && host <= snat_port_max;
}

/* Jiffies in a second (CONFIG_HZ). */
const volatile __u32 jiffies_per_second = 1000;

/* For how long, in jiffies, the programs believe what they have looked up of devices and routes. */
#define BELIEVE_JIFFIES (jiffies_per_second / 16)

/* At the node edge, what comes from an address in `inside_sources` counts as inside (detectLocalMode). */
const volatile __u8 inside_by_source = 0;

/*
 * The bit of a packet's mark by which a rule of the node (controlplane/masquerade) gives what goes to a ClusterIP an
 * address of the node as its source (masqueradeAll). 0: none does.
 */
const volatile __u32 masquerade_mark = 0;

/* The same bit, for what policies of XFRM may concern (policy.h). */
const volatile __u32 policy_mark = 0;

/* For how long a silent backend gets no new flows; 0: it gets them as any other. */
const volatile __u32 quarantine_seconds = 0;

/* XDP programs are loaded as ones that take packets in several buffers (Linux 5.18). */
const volatile __u8 xdp_frags = 0;

/* The kernel knows BPF_F_IPV6: without it CHECKSUM_COMPLETE is corrupted when IPv6 addresses change. */
const volatile __u8 csum_ipv6_flag = 0;

/* bpf_set_retval is there (Linux 5.18): a cgroup hook can say why it refuses. */
const volatile __u8 have_set_retval = 1;

/*
 * The cookie of the node's own network namespace. 0: the kernel tells no cookies (before Linux 5.14), and
 * namespaces are not told apart.
 */
const volatile __u64 node_netns = 0;

/* The socket edge serves the sockets of that namespace alone. */
const volatile __u8 socket_host_only = 0;

/* NodePorts answer on loopback addresses, at the socket edge. */
const volatile __u8 localhost_node_ports = 1;

#endif
