/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SCTP as it is on the wire (RFC 9260, 3), and what its first chunk says, in TCP's terms: flows begin and end with
 * both in the same way.
 */
#ifndef WEIR_SCTP_H
#define WEIR_SCTP_H

#include <linux/types.h>

struct sctp_header {
	__be16 source;
	__be16 destination;
	__be32 tag;
	__u32 checksum; /* CRC32c, in little endian */
};

struct sctp_chunk {
	__u8 type;
	__u8 flags;
	__be16 length;
};

/* A packet up to its first chunk; a packet without any is none. */
struct sctp_packet {
	struct sctp_header header;
	struct sctp_chunk chunk;
};

struct sctp_init {
	struct sctp_packet packet;
	__be32 initiate_tag; /* that packets to its sender shall have */
};

#define SCTP_INIT 1
#define SCTP_INIT_ACK 2
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN 7
#define SCTP_SHUTDOWN_ACK 8
#define SCTP_SHUTDOWN_COMPLETE 14

/* The sender of an ABORT has no association: its tag is the receiver's own (RFC 9260, 8.5.1). */
#define SCTP_ABORT_TAG_REFLECTED 1

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define SCTP_CHUNK_TYPES 16

/* By chunk type. Nothing answers an ABORT, and nothing a SHUTDOWN COMPLETE: both end the association. */
const __u8 sctp_flags_of_chunk[SCTP_CHUNK_TYPES] = {
	TCP_ACK,
	[SCTP_INIT] = TCP_SYN,
	[SCTP_INIT_ACK] = TCP_SYN | TCP_ACK,
	TCP_ACK,
	TCP_ACK,
	TCP_ACK,
	[SCTP_ABORT] = TCP_RST,
	[SCTP_SHUTDOWN] = TCP_FIN | TCP_ACK,
	[SCTP_SHUTDOWN_ACK] = TCP_FIN | TCP_ACK,
	TCP_ACK,
	TCP_ACK,
	TCP_ACK,
	TCP_ACK,
	TCP_ACK,
	[SCTP_SHUTDOWN_COMPLETE] = TCP_RST,
	TCP_ACK,
};

/* An INIT has no tag: its receiver has not said one yet. */
static __always_inline __u8 sctp_flags(const struct sctp_packet *sctp)
{
	if (sctp->chunk.type >= SCTP_CHUNK_TYPES || (sctp->chunk.type == SCTP_INIT && sctp->header.tag))
		return TCP_ACK;
	return sctp_flags_of_chunk[sctp->chunk.type];
}

#endif
