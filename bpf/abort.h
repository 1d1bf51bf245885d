/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The ABORT that an SCTP packet is answered with that belongs to no association (RFC 9260, 8.4). At tc alone. */
#ifndef WEIR_ABORT_H
#define WEIR_ABORT_H

#include "crc32c.h"
#include "packet.h"
#include "sctp.h"

/* The tag by which its sender believes an ABORT. False: the packet is too short. */
static __always_inline bool abort_fill(struct packet *packet, struct sctp_packet *abort)
{
	struct sctp_packet *sctp = packet_at(packet, packet->transport_offset, sizeof(*sctp));
	struct sctp_init *init;

	if (!sctp)
		return false;
	abort->header.source = sctp->header.destination;
	abort->header.destination = sctp->header.source;
	abort->header.tag = sctp->header.tag;
	abort->header.checksum = 0;
	abort->chunk.type = SCTP_ABORT;
	abort->chunk.flags = SCTP_ABORT_TAG_REFLECTED;
	abort->chunk.length = bpf_htons(sizeof(abort->chunk));
	if (!packet_is_syn(packet))
		return true;
	init = packet_at(packet, packet->transport_offset, sizeof(*init));
	if (!init)
		return false;
	abort->header.tag = init->initiate_tag;
	abort->chunk.flags = 0;
	return true;
}

/* Turns an SCTP packet into the ABORT that answers it, but for the IP header. False: the kernel refused. */
static __always_inline bool abort_write(struct packet *packet)
{
	__u32 field = packet->transport_offset + __builtin_offsetof(struct sctp_header, checksum);
	struct sctp_packet abort = {}, *sctp;
	int partial;

	packet_make_linear(packet->context);
	if (!abort_fill(packet, &abort))
		return false;
	partial = checksum_is_partial(packet->context, field);
	if (partial < 0 ||
	    bpf_skb_change_tail(packet->context, packet->transport_offset + sizeof(struct sctp_packet), 0))
		return false;
	if (!partial) /* else the device finds a 0 to begin with */
		abort.header.checksum = crc32c_of_words((__u32 *)&abort, sizeof(abort) / sizeof(__u32));
	sctp = packet_at(packet, packet->transport_offset, sizeof(*sctp));
	if (!sctp)
		return false;
	*sctp = abort;
	return true;
}

#endif
