/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * XDP answers nobody itself: a packet that needs a reset or an ICMP error goes up unchanged, and the
 * program at tc, which finds it the same way, answers (reject.h).
 */
#ifndef WEIR_ANSWER_XDP_H
#define WEIR_ANSWER_XDP_H

#include "packet.h"
#include "stats.h"

static __always_inline int packet_pass_up(void)
{
	count(xdp_passed_up);
	return PACKET_PASS;
}

static __always_inline int reset(const struct packet *packet)
{
	return packet_pass_up();
}

static __always_inline int reject(struct packet *packet, struct device *device)
{
	return packet_pass_up();
}

static __always_inline int refuse_lost(const struct packet *packet)
{
	return packet_pass_up();
}

static __always_inline int reply_too_big(struct packet *packet, struct device *device, __u32 mtu)
{
	return packet_pass_up();
}

static __always_inline int reply_time_exceeded(struct packet *packet, struct device *device)
{
	return packet_pass_up();
}

/* Fragments never get so far: packet_leave(). */
static __always_inline int fragment_scratch(packet_context *context)
{
	return PACKET_PASS;
}

/* The stack takes answers to this host itself from tc. */
static __always_inline int host_answer_scratch(packet_context *context)
{
	return packet_pass_up();
}

#endif
