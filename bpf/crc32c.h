/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * CRC32c, the checksum of SCTP, without its start value and its last complement: what is left is linear. So when some
 * bytes of a packet change, the checksum changes by that of a packet of zeros with those bytes' difference in it, and
 * the rest need not be read. The zeros behind the difference are passed over in as many steps as their number has
 * bits.
 */
#ifndef WEIR_CRC32C_H
#define WEIR_CRC32C_H

#include <bpf/bpf_helpers.h>
#include <linux/types.h>

/* An SCTP packet has fewer bytes than 2 to the power of that. */
#define CRC32C_POWERS 16
#define CRC32C_NIBBLES 8
#define CRC32C_NIBBLE_VALUES 16

/*
 * By power, nibble and value: what a sum with nothing but that nibble becomes by 2^power bytes of zero. A sum becomes
 * what its nibbles do, added up. Made by the loader (loader/crc32c.go).
 */
const volatile __u32 crc32c_zeros[CRC32C_POWERS][CRC32C_NIBBLES][CRC32C_NIBBLE_VALUES] = {};

/* The sum after 2^power more bytes of zero. */
static __always_inline __u32 crc32c_pass_power(__u32 sum, __u32 power)
{
	__u32 passed = 0;
	int i;

#pragma unroll
	for (i = 0; i < CRC32C_NIBBLES; i++)
		passed ^= crc32c_zeros[power][i][sum >> (4 * i) & (CRC32C_NIBBLE_VALUES - 1)];
	return passed;
}

/* The sum after that many more bytes of zero. */
static __always_inline __u32 crc32c_pass(__u32 sum, __u32 zeros)
{
	__u32 power;

#pragma nounroll
	for (power = 0; power < CRC32C_POWERS; power++) {
		if (zeros & 1)
			sum = crc32c_pass_power(sum, power);
		zeros >>= 1;
	}
	return sum;
}

/*
 * What the checksum of `length` bytes changes by, as an exclusive or, when the first four do by `first`: a word goes
 * into the sum at its beginning, and then its own four bytes are passed like those behind it.
 */
static __always_inline __u32 crc32c_change(__u32 first, __u32 length)
{
	return crc32c_pass(first, length);
}

#define CRC32C_POWER_OF_WORD 2

/* The checksum of a few words. */
static __always_inline __u32 crc32c_of_words(const __u32 *words, __u32 number)
{
	__u32 sum = ~0U, i;

#pragma unroll
	for (i = 0; i < number; i++)
		sum = crc32c_pass_power(sum ^ words[i], CRC32C_POWER_OF_WORD);
	return ~sum;
}

#endif
