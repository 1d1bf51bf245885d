/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP and ICMPv6 as they are on the wire. */
#ifndef WEIR_ICMP_HEADER_H
#define WEIR_ICMP_HEADER_H

#include <linux/types.h>

/* RFC 792 and RFC 4443: the two have the same first eight bytes. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 rest;
};

#define ICMP_ECHO_REPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_REDIRECT 5
#define ICMP_ECHO_REQUEST 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12

#define ICMP_PORT_UNREACH 3
#define ICMP_FRAG_NEEDED 4

#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_TIME_EXCEED 3
#define ICMPV6_INFORMATIONAL 128 /* the first type that is no error */
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define ICMPV6_REDIRECT 137

#define ICMPV6_PORT_UNREACH 4

#endif
