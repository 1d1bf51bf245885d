/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The records that live in maps: the API between the programs and the agent.
 *
 * These structs are the single source. Go's types are generated from their BTF (maps/gen.go), so a
 * change here is a change there. Records that people read with bpftool (frontends, services,
 * backends, devices) hold addresses as bytes and ports in host order; records that only programs read
 * (flows) hold wire order.
 *
 * IPv4 is carried everywhere as the v4-mapped IPv6 address ::ffff:a.b.c.d, so that one record and one
 * body of code serve both families.
 */
#ifndef WEIR_TYPES_H
#define WEIR_TYPES_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Bumped whenever a record below changes shape or meaning. The agent refuses maps of another layout. */
#define WEIR_LAYOUT_VERSION 6

/* An address in network byte order; v4-mapped for IPv4. */
struct address {
	__u8 bytes[16];
} __attribute__((aligned(4)));

/* Addresses that begin alike, in a longest prefix match. */
struct prefix_key {
	__u32 prefix_length; /* in bits */
	struct address address;
};

#define ADDRESS_PREFIX_MAX 128

/* ---- frontends ---- */

struct frontend_key {
	struct address address; /* all zero (::, ::ffff:0.0.0.0) is a NodePort: any node address */
	__u16 port;		/* host order */
	__u8 protocol;		/* IPPROTO_* */
	__u8 pad;
};

enum frontend_kind {
	FRONTEND_CLUSTER_IP = 1,
	FRONTEND_NODE_PORT = 2,
	FRONTEND_LOAD_BALANCER = 3,
	FRONTEND_EXTERNAL_IP = 4,
} __attribute__((packed));

#define FRONTEND_INDEX_MASK 0xffffff
#define FRONTEND_KIND_SHIFT 24

/*
 * Replaced as a whole and read as one aligned u64. An element of a hash map may be recycled for another
 * key while a program still reads it, so the seal ties the value to its key:
 * seal = frontend_hash(key) ^ generation of the service record (frontend.h).
 *
 * The lock is for the kernel alone: with it the agent's writes (BPF_F_LOCK) change the value where it is.
 * Without, the kernel puts a new element before the old one and then takes that out, and a program that has
 * passed the beginning of the bucket by then finds neither. A value seen half written names the old record or
 * the new one, both whole, or does not fit its seal.
 */
struct frontend {
	__u32 service; /* index into services, in the low 24 bits; above it the kind of frontend */
	__u32 seal;
	struct bpf_spin_lock lock;
} __attribute__((aligned(8)));

/* Flags of an address that clients send to, whatever the port. */
#define VIP_ANSWERS_INSIDE (1U << 0)  /* a ping from a pod of this node: a service there has a backend for it */
#define VIP_ANSWERS_OUTSIDE (1U << 1) /* a ping that arrives at the node edge */

/* ---- services ---- */

enum algorithm {
	ALGORITHM_RANDOM = 0,
	ALGORITHM_MAGLEV = 1,
	ALGORITHM_LEAST_CONNECTIONS = 2,
} __attribute__((packed));

/* A selection table: `count` slots of the arena, from slot number `base` on. */
struct slot_range {
	__u32 base;
	__u32 count;
};

/* Written only while no frontend names it; a changed service is a new record under a new index. */
struct service {
	__u32 id;	  /* of the service, stable over its records; index into service_stats */
	__u32 generation; /* of this record */
	__u16 flags;	  /* SERVICE_* */
	enum algorithm inside_algorithm;
	enum algorithm outside_algorithm;
	__u32 affinity_timeout;	   /* seconds; 0 is no affinity */
	struct slot_range inside;  /* for traffic of this node's pods and processes */
	struct slot_range outside; /* for traffic that arrives at the node edge */
	struct slot_range
		inside_members; /* with affinity: who is in that table, each once, in order of the indices */
	struct slot_range outside_members; /* the same of the other table */
	__u64 affinity_group; /* the same for all records of a Service port in one family, now and after a restart */
};

/* Flags of a service. */
#define SERVICE_NO_ENDPOINTS (1U << 0)	/* no endpoint in the whole cluster: reject, whatever the policy */
#define SERVICE_SOURCE_RANGES (1U << 1) /* its load balancer addresses are for clients in `sources` alone */

#define SERVICE_INSIDE_WEIGHTED (1U << 8)  /* the inside table has Maglev's shape, whatever the algorithm */
#define SERVICE_OUTSIDE_WEIGHTED (1U << 9) /* the same of the outside table */

/* Read by people and by the agent after a restart; no program looks at it. */
struct service_name {
	__u32 id;
	__u8 name[220]; /* "namespace/name:port/protocol/family", zero padded */
};

/* A prefix whose addresses may use the load balancer addresses of a service. */
struct source_key {
	__u32 prefix_length; /* in bits, with the 32 of the service */
	__u32 service;	     /* id */
	struct address address;
};

#define SOURCE_PREFIX_LENGTH_MAX (32 + 128)

/* ---- addresses of Services that no frontend is for ---- */

/* What becomes of a packet to such an address that would open a flow. */
enum cluster_ip_use {
	CLUSTER_IP_UNALLOCATED = 1, /* of a ServiceCIDR, and no Service has it: dropped */
	CLUSTER_IP_ALLOCATED = 2,   /* a ClusterIP, which has no such port: rejected */
	CLUSTER_IP_LEFT = 3,	    /* also an external address, or served by another proxy: left alone */
};

/* Of one family: no address outside of these is in cluster_ips. Grows with it, and is never smaller than it. */
struct address_bounds {
	struct address low;
	struct address high;
};

/* ---- slots ---- */

#define SLOTS_PER_BLOCK 16

/* One cache line of the arena. A slot holds a backend index. */
struct slot_block {
	__u32 backend[SLOTS_PER_BLOCK];
};

/* ---- backends ---- */

#define BACKEND_LOCAL (1U << 0)	      /* on this node: reached through the stack, the client's address kept */
#define BACKEND_TERMINATING (1U << 1) /* still serving, no longer ready */
#define BACKEND_GONE (1U << 2)	      /* no table names it any more */
#define BACKEND_TUNNEL (1U << 3)      /* its node takes packets in a tunnel, and answers clients itself (DSR) */

struct backend {
	__u32 generation; /* 0: unused */
	__u32 flags;	  /* BACKEND_* */
	struct address address;
	__u16 port; /* host order */
	__u8 protocol;
	__u8 pad;
};

/* Where a tunnel leads to: what makes two endpoints the same backend. */
struct tunnel_target {
	struct address address;
	__u16 port; /* host order */
	__u8 protocol;
	__u8 pad;
};

/*
 * How busy a backend is, for least-connections: what is open is flows + correction + sockets. Programs count flows as
 * they are born, and when their client closes them; those that end otherwise are found by the sweep, which counts the
 * living ones anew: then the agent corrects the sum. So an error does not last longer than a sweep's interval.
 */
struct backend_load {
	__s32 flows;	  /* born less closed, ever since */
	__s32 sockets;	  /* connected at the socket edge, and not yet released */
	__s32 correction; /* written by the agent after a sweep */
	__u32 counted;	  /* by the sweep that runs */
};

/* ---- health ---- */

/* Different clients that find a backend silent, one after the other, before it is in quarantine. */
#define HEALTH_CLIENTS 3

struct health {
	__u32 generation;	       /* of the backend that the rest is about */
	__u32 until;		       /* seconds of CLOCK_MONOTONIC: the end of its quarantine; 0: in none */
	__u32 clients[HEALTH_CLIENTS]; /* hashes of those that have had no answer since the last one; 0: none */
	__u32 pad;
};

/* ---- affinity ---- */

struct affinity_key {
	__u64 group; /* affinity_group of the service */
	struct address client;
};

/* The backend of a client's last new flow. */
struct affinity_entry {
	__u32 seal; /* of the key (pick.h): an element recycled under a reader does not match */
	__u32 backend;
	__u32 generation; /* of the backend */
	__u32 seconds;	  /* since boot, when that flow was born */
};

/* ---- flows ---- */

/* Ports in network byte order. */
struct tuple {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
};

struct flow_key {
	struct tuple tuple; /* as the packet arrives, before translation */
	__u16 edge;	    /* EDGE_ID_NODE, or the id of a pod edge: flows of one edge are invisible to others */
	__u8 protocol;
	__u8 pad;
} __attribute__((aligned(8)));

/*
 * The same in less: what established flows of IPv4 are found by. Whole words: the hash reads it so, and a CPU waits
 * for what was stored in smaller parts.
 */
struct flow_key_ipv4 {
	__be32 source;
	__be32 destination;
	__be32 ports;	     /* source and destination, as in the packet */
	__u32 edge_protocol; /* the edge in the high half */
};

/* What to do with a packet of the flow, once rewritten. */
enum flow_action {
	FLOW_STACK = 0,	  /* hand it to the network stack */
	FLOW_FORWARD = 1, /* send it out by the route to its new destination */
	FLOW_RETURN = 2,  /* send it back out of the device it came in on (hairpin) */
	FLOW_FOREIGN = 3, /* not ours: let it pass untouched */
	FLOW_HOST = 4,	  /* of this host's own: out to its backend, back as if the VIP had answered */
	FLOW_TUNNEL =
		5, /* send it in a tunnel to its backend's node, which answers the client itself: no reverse half */
} __attribute__((packed));

/*
 * Added to the action of the forward half, of an established TCP flow whose backend has left its Service, where that
 * wants such connections reset: its client is told with its next packet.
 */
#define FLOW_ENDED 0x80

enum flow_half {
	FLOW_HALF_FORWARD = 0, /* client to backend */
	FLOW_HALF_REVERSE = 1, /* backend to client */
} __attribute__((packed));

enum flow_state {
	FLOW_UNANSWERED = 0, /* an embryo: the backend has not said anything yet */
	FLOW_ANSWERED = 1,   /* an embryo whose backend has answered; the client's next packet establishes it */
	FLOW_LOST = 2,	     /* an embryo's reverse half: the backend of another try has answered before (try.h) */
	FLOW_ESTABLISHED = 3,
	FLOW_CLOSING = 4, /* FIN seen from one side at least */
	FLOW_CLOSED = 5,  /* RST, or FIN from both sides */
} __attribute__((packed));

/*
 * Where packets of a half that is forwarded go next, as the routes said at `read`. Kept for a moment
 * only (route.h): so nobody has to be told when routes, neighbours or MTUs change.
 */
struct hop {
	__u32 read;    /* jiffies, low 32 bits */
	__u32 ifindex; /* of the device to send by */
	__u16 mtu;     /* 0: nothing is known */
	__u8 destination_mac[6];
	__u8 source_mac[6];
	__u8 by_xdp; /* XDP has found it, and can send by it; else tc has */
	__u8 pad;
};

/*
 * One half of a flow. The other half's key is the reverse of `to`, and its `to` is the reverse of this
 * half's key: nothing else links them. An embryo may have more reverse halves than the one that its forward half
 * leads to: one for each try. FLOW_TUNNEL has a forward half alone; it leads from this node, port 0, to the backend.
 */
struct flow {
	__u32 seal;		 /* of the key (flow_seal): an element recycled under a reader does not match */
	struct tuple to;	 /* what the packet's tuple becomes */
	__u32 last_seen;	 /* jiffies, low 32 bits */
	__u32 service;		 /* service id */
	__u32 backend;		 /* backend index */
	__u32 generation;	 /* of the backend */
	__u32 ifindex;		 /* the device (or its bridge or bond) the client's packets arrive by; 0: not known */
				 /* of FLOW_HOST: the device they leave by, itself */
	enum flow_action action; /* from here to `retry` it is one word, of which try.h changes the state */
	enum flow_half half;
	enum flow_state state; /* of this half: each side closes its own */
	__u8 retry;	       /* an embryo's reverse half that the forward half does not lead to */
	struct hop hop; /* of the reverse half of FLOW_STACK: no packet of the client may be longer than hop.mtu, */
			/* as it comes in a tunnel; 0: it does not */
} __attribute__((aligned(8)));

/* ---- fragments ---- */

/* What all fragments of a datagram have. */
struct fragment_key {
	struct address source;
	struct address destination;
	__be32 id;  /* 16 bits of it in IPv4 */
	__u16 edge; /* as of flows */
	__u8 protocol;
	__u8 pad;
};

enum datagram_state {
	DATAGRAM_AWAITED = 0, /* its first fragment has not come */
	DATAGRAM_KNOWN,	      /* it has, with the ports */
	DATAGRAM_LEFT,	      /* it has, without all of the transport header: the datagram is left alone */
};

struct datagram {
	__u32 seal;   /* of the key: an element recycled under a reader does not match */
	__u32 seen;   /* jiffies, low 32 bits, when the first of its fragments came */
	__u32 state;  /* enum datagram_state */
	__be32 ports; /* source and destination, as in the packet */
	__u32 held;   /* fragments that have come before the first */
};

struct held_key {
	struct fragment_key datagram;
	__u32 place; /* counted from 0 */
};

#define HELD_BYTES 1600

/* A fragment as it has come, with its Ethernet header. */
struct held_fragment {
	__u32 length;
	__u8 bytes[HELD_BYTES];
};

/* ---- sockets ---- */

/* What a connected socket was told it had connected to; in the socket's own storage. */
struct socket_peer {
	struct address frontend;
	struct address backend;
	__u16 frontend_port; /* host order */
	__u16 backend_port;
	__u32 service;	  /* id */
	__u32 index;	  /* of the backend */
	__u32 generation; /* of the backend */
};

/* An unconnected UDP socket's exchange: with `peer` as the application names it, or as packets do. */
struct socket_key {
	__u64 cookie;
	struct address peer;
	__u16 port; /* host order */
	__u8 reply; /* 1: peer is the backend */
	__u8 pad[5];
};

struct socket_flow {
	struct address peer; /* what the key's peer becomes */
	__u16 port;	     /* host order */
	__u16 older_port;
	__u32 index;	      /* of the backend */
	__u32 generation;     /* of the backend */
	struct address older; /* the frontend of the socket's exchange before this one; port 0: this is its first */
};

/* The frontend of a socket's latest exchange, where the chain of its exchanges begins; in the socket's own storage.
 */
struct socket_latest {
	struct address frontend;
	__u16 port; /* host order; 0: none */
	__u16 pad;
};

/* ---- network namespaces ---- */

#define NAMESPACE_LEFT (1U << 0)    /* its sockets are left to the packet edges */
#define NAMESPACE_CGROUPS (1U << 1) /* so are those of some cgroups in it: left_cgroups */

/*
 * A network namespace of this host. Written where it is (BPF_F_LOCK, as a frontend): a program never takes
 * another one's record for it.
 */
struct network_namespace {
	__u32 flags;	     /* NAMESPACE_* */
	struct address ipv4; /* v4-mapped: what its sockets have as a source, unless bound to another; zero if none */
	struct address ipv6;
	struct bpf_spin_lock lock;
};

/* A ClusterIP that a network namespace has as an address of its own, as NodeLocal DNSCache makes it. */
struct local_vip {
	__u64 cookie;
	struct address address;
};

/* ---- devices ---- */

enum edge_kind {
	EDGE_NONE = 0, /* known for its addresses only (a bridge); no program of ours is on it */
	EDGE_NODE = 1,
	EDGE_POD = 2,
} __attribute__((packed));

#define EDGE_ID_NODE 0
#define EDGE_ID_FOREIGN 0xffff /* in keys alone, of foreign flows that may arrive at any edge (foreign.h) */

#define DEVICE_NO_ETHERNET (1U << 0) /* packets start at the IP header (tun, wireguard, ipip) */
#define DEVICE_TO_PODS (1U << 1)     /* what the stack sends out here goes to this node's pods */
#define DEVICE_INSIDE (1U << 2)	     /* what arrives here counts as inside (detectLocalMode) */

struct device {
	enum edge_kind edge;
	__u8 flags;	     /* DEVICE_* */
	__u16 edge_id;	     /* EDGE_ID_NODE, or of the pod edge */
	__u8 mac[6];	     /* of the device */
	__u8 master_mac[6];  /* of the bridge or bond it is a port of; zero if none */
	__u32 master;	     /* ifindex of that bridge or bond; 0 if none */
	struct address ipv4; /* v4-mapped: what SNAT and hairpin use as a source here; zero if none */
	struct address ipv6;
	struct address router_ipv4; /* v4-mapped: of a default route out of here, of any table; zero if none */
	struct address router_ipv6;
	__u32 mtu;
};

/*
 * What the map holds. It changes where it is (BPF_F_LOCK, as a frontend), and a program copies it with the lock held:
 * it has the old record or the new one, and always one. A new record gets the element of a removed one, which a
 * program may have in its hand; that is written without the lock. Hence the seal: a hash of the ifindex and the
 * device.
 */
struct device_record {
	__u32 seal;
	struct bpf_spin_lock lock;
	struct device device;
};

/* ---- counters ---- */

/* Per CPU. Why packets were dropped, rejected or left alone; the names are the metric labels. */
struct packet_counters {
	/* dropped */
	__u64 drop_flow_table_full;	 /* a client's answer found no room in the flow table */
	__u64 drop_snat_ports_exhausted; /* no source port left toward this backend */
	__u64 drop_snat_no_address;	 /* the device toward the backend has no address of the family */
	__u64 drop_snat_orphan;		 /* to the SNAT port range, of no flow or socket; or of a pod for another */
	__u64 drop_no_route;		 /* no route to the backend or back to the client */
	__u64 drop_no_local_endpoint;	 /* policy Local, and no endpoint on this node */
	__u64 drop_stale_service;	 /* frontend and service record disagreed twice */
	__u64 drop_stale_backend;	 /* a slot named an unused backend */
	__u64 drop_rewrite_failed;	 /* the kernel refused a checksum or header update */
	__u64 drop_no_hairpin_address;	 /* a pod reached itself, and its link has no node address */
	__u64 drop_icmp_redirect;	 /* about a packet of a flow: it would name a backend's MAC, or a VIP's */
	__u64 drop_icmp_try;		 /* about a SYN that another backend has answered, or may answer yet */
	__u64 drop_icmp_undeliverable;	 /* an ICMP error about a flow: no route, or too long for it, or expired */
	__u64 drop_fragment;		 /* no room until the first comes, or no answer that can be given to it */
	__u64 drop_source_denied;	 /* to a load balancer address, from outside its source ranges */
	__u64 drop_host_untranslated;	 /* sent by this host to a VIP, which it may not leave with */
	__u64 drop_unallocated;		 /* to an address of a ServiceCIDR that no Service has */
	__u64 drop_tunnel_unknown;	 /* from another node's tunnel, to no frontend that is known here */
	__u64 drop_policy;		 /* of a flow that is redirected, and a policy of XFRM has come to concern */
	__u64 drop_lost_try;		 /* a backend has answered a SYN after another one had; it is sent a reset */
	__u64 refuse_no_endpoint;	 /* at the socket edge: ECONNREFUSED */
	__u64 refuse_no_local_endpoint;	 /* at the socket edge: EHOSTUNREACH */
	__u64 refuse_source_denied;	 /* at the socket edge: EHOSTUNREACH */
	__u64 refuse_unknown_port;	 /* at the socket edge, to a ClusterIP without that port: ECONNREFUSED */
	__u64 refuse_unallocated;	 /* at the socket edge: EHOSTUNREACH */
	__u64 refuse_bind;		 /* bind() of an active NodePort: EADDRINUSE */
	/* answered by us */
	__u64 reject_tcp_reset;
	__u64 reject_sctp_abort;
	__u64 reject_unreachable;
	__u64 icmp_too_big;
	__u64 icmp_time_exceeded;
	__u64 icmp_echo;    /* pings of VIPs */
	__u64 icmp_limited; /* an ICMP error or answer not sent: over the rate */
	/* left alone, or to the stack; what XDP passes up is counted at tc */
	__u64 pass_malformed;	   /* too short for its headers, or lengths that contradict each other */
	__u64 pass_fragment;	   /* a fragment of a datagram that is not ours */
	__u64 pass_extension;	   /* an IPv6 header chain longer than we walk, or unknown */
	__u64 pass_not_for_us;	   /* a frame for another MAC */
	__u64 pass_foreign;	   /* of a foreign flow */
	__u64 pass_local_listener; /* to a ClusterIP on which a socket of the node itself listens */
	__u64 pass_without_flow;   /* mid-stream TCP or SCTP to a frontend, of no flow of ours */
	/* what happened */
	__u64 flow_new;
	__u64 flow_established;
	__u64 flow_foreign;	    /* foreign flows recorded */
	__u64 flow_retried;	    /* a SYN without an answer has been sent to another backend as well */
	__u64 flow_moved;	    /* and that backend was the first to answer */
	__u64 backend_quarantined;  /* three clients in a row have found a backend silent */
	__u64 flow_reverse_rebuilt; /* an embryo's lost reverse half put back */
	__u64 tunnel_sent;	    /* packets sent to their backend's node as the client has sent them */
	__u64 tunnel_received;	    /* packets that another node has sent so */
	__u64 packet_cut;	    /* to fragments, for a way that takes shorter ones */
	__u64 fragment_held;	    /* fragments that have waited for the first of their datagram */
	__u64 icmp_translated;	    /* ICMP errors about packets of flows, sent on to whom they are for */
	__u64 socket_translated;    /* connect() and first sends to a frontend */
	__u64 affinity_new;	    /* a client that was not known, or has been evicted, has got a backend */
	__u64 affinity_kept;	    /* a client's new flow has gone where the last one went */
	__u64 affinity_moved;	    /* or elsewhere: it was too long ago, or that backend is not to be had */
	__u64 socket_left;	    /* left to the packet edges: every backend is in use under another name or port */
	__u64 xdp_passed_up;	    /* left to tc: no neighbour yet, not an XDP device, a reject */
};

/* Per CPU, by service id and by backend index. */
struct traffic {
	__u64 flows; /* opened */
	__u64 packets;
	__u64 bytes; /* of IP packets, client to backend */
	__u64 reply_packets;
	__u64 reply_bytes;
};

/* ---- sweep ---- */

/* Flows of a service to a backend, of which the service has been left. */
struct ending_key {
	__u32 service; /* id; 0: of any service */
	__u32 backend; /* index */
	__u32 generation;
};

struct ending {
	__u64 due; /* when flows end that are there then or later; CLOCK_MONOTONIC, in ns */
};

/* What a sweep is told; see sweep.bpf.c. Times are in jiffies. */
struct sweep_settings {
	__u32 epoch; /* written to service_usage and backend_usage for every live flow */
	__u32 timeout_unanswered;
	__u32 timeout_tcp;
	__u32 timeout_tcp_half_closed;
	__u32 timeout_tcp_closed;
	__u32 timeout_udp;
	__u32 timeout_sctp;
	__u32 timeout_foreign;
	__u32 endings; /* how many there are; 0: none is looked for */
};

/* What programs are told while they run. */
struct live_settings {
	__u32 connections_known; /* those that others translate are recorded: what no flow knows is nobody's */
	__u32 policies_exist;	 /* outgoing ones of XFRM: xfrm_prefixes says to where */
};

/* What the agent keeps for its successor. */
struct agent_record {
	__u32 layout_version;
	__u32 last_edge_id;	  /* given to a pod edge last: ids go round */
	__u8 programs_digest[32]; /* of the attached programs and their constants */
};

#endif
