/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the slow paths work on: too large for the stack, and handed this way to global functions, which the
 * verifier checks once, alone, and not anew for every way that leads to them. Kernels before 5.12 let such a
 * function take nothing but the context.
 *
 * One per CPU and program: packets of one program on one CPU do not interrupt each other.
 */
#ifndef WEIR_SCRATCH_H
#define WEIR_SCRATCH_H

#include "device.h"
#include "packet.h"

/* Quoted at most, of the packet an ICMP error is about, in bytes: a multiple of 4, as bpf_csum_diff wants. */
#define ICMP_QUOTE_MAX 508

/* What a packet needs of its flow, copied out of the map. */
struct flow_view {
	struct tuple to;
	struct flow *flow; /* the half itself; NULL: it has just been opened */
	enum flow_action action;
	enum flow_half half;
	__u32 ifindex;
	int verdict; /* of a packet that opens no flow */
};

/* A flow about to be opened. */
struct birth {
	struct tuple to; /* its source port: what the client uses, to be kept where possible */
	__u32 service;	 /* id */
	__u32 backend;
	__u32 generation;
	__u64 affinity_group; /* 0: the service has no affinity */
	struct device out;    /* the device toward the backend, where that was asked for: too large for the stack */
	__u16 answers_mtu;    /* of FLOW_STACK: no packet of the client may be longer; 0: that is not known */
	enum flow_action action;
	bool snat;  /* the source is an address of the node: the port comes from the SNAT range */
	bool retry; /* another try of a flow that is there */
};

/* An ICMP error, named once for both families. */
struct icmp_error {
	__u8 type4, code4;
	__u8 type6, code6;
	__u32 mtu;	       /* for too big, else 0 */
	struct address source; /* who says it: the address asked, or the router's */
};

/* How many messages of a sort have been sent in a second. */
struct icmp_rate {
	__u32 second; /* jiffies / jiffies_per_second */
	__u32 spent;
};

/* What an ICMP packet is about. */
enum quote_result {
	QUOTE_NONE = 0, /* no error, or about no packet of ours */
	QUOTE_ERROR,
	QUOTE_REDIRECT,
	QUOTE_OF_TRY, /* an error about a SYN that another backend has answered, or may answer yet */
};

/* What an ICMP packet quotes: icmp_quote.h. */
struct quoted {
	enum quote_result result;
	struct packet packet;
	struct flow_view half; /* that the ICMP packet travels with; its `flow` is NULL */
};

/* The longest IP packet that is cut: what links with jumbo frames carry. */
#define CUT_BYTES_MAX 9216

/* The cutting of a packet: cut.h. */
struct cut {
	__u32 mtu;
	__u32 ifindex; /* to go out by */
	__u32 total;   /* bytes behind the IP header */
	__u32 piece;   /* of them in one piece */
	__u32 offset;  /* of the next */
	__be16 field;  /* flags and offset, as in the packet */
	bool again;    /* to come again by the device that the packet is on, `ifindex` */
};

/* The search for the maximum segment size in a TCP header: mss.h. */
struct mss {
	__u16 most;   /* it shall be no more */
	__u16 offset; /* in the header, of the option that is looked at next */
	bool refused; /* by the kernel, to write it */
};

/* A packet about to go in a tunnel: tunnel.h. */
struct tunnel {
	struct tuple to; /* its flow's: from this node to the backend */
	struct hop hop;	 /* at XDP its flow's, where `ready` */
	bool ready;	 /* the hop is good, and all of the packet has been looked at */
};

struct scratch {
	struct packet packet;
	struct flow_view view; /* its flow, without the half: node_translate_scratch() */
	bool opened;	       /* which has just been opened */
	__u32 tried;	       /* the backend that the packet's flow has, and that is silent; 0: it has none */
	struct birth birth;
	struct flow_key reverse;
	struct flow half;
	struct device by;      /* that a client came by, and */
	struct address router; /* at its other end, as it is in packets: back.h */
	bool last_resort;      /* no tuple is free for the answers: that of a younger embryo may be taken */
	struct bpf_sock_tuple socket;
	struct icmp_error error;
	struct cut cut;
	struct tunnel tunnel;
	struct tunnel_target target; /* the backend that the packet's tunnel leads to */
	__u32 target_index;
	struct mss mss;
	struct address tunnel_source; /* the node it comes from */
	struct held_key held;	      /* a fragment that waits for the first: fragment_wait.h */
	struct quoted quoted;
	struct icmp_rate errors;
	struct icmp_rate echoes;
	__u8 quote[ICMP_QUOTE_MAX + 4];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct scratch);
	__uint(max_entries, 1);
} scratches SEC(".maps");

static __always_inline struct scratch *scratch_find(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

/* Copies a packet without its context: that is an argument of its own. */
static __always_inline void packet_copy(struct packet *to, const struct packet *from)
{
	__builtin_memcpy(&to->key, &from->key, sizeof(*to) - __builtin_offsetof(struct packet, key));
}

/* Puts the packet there. */
static __always_inline struct scratch *scratch_save(const struct packet *packet)
{
	struct scratch *scratch = scratch_find();

	if (scratch)
		packet_copy(&scratch->packet, packet);
	return scratch;
}

static __always_inline void scratch_load(struct packet *packet, packet_context *context,
					 const struct scratch *scratch)
{
	packet->context = context;
	packet_copy(packet, &scratch->packet);
}

/* Goes on with scratch->packet, and says what device it is on. NULL: that has just gone. */
static __always_inline struct scratch *packet_resume(struct packet *packet, packet_context *context,
						     struct device **device)
{
	struct scratch *scratch = scratch_find();

	if (!scratch)
		return NULL;
	scratch_load(packet, context, scratch);
	*device = device_of_packet(context, packet->now);
	return *device ? scratch : NULL;
}

#endif
