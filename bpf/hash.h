/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The hash of records: what seals a value to its key. maps/hash.go is the same in Go. */
#ifndef WEIR_HASH_H
#define WEIR_HASH_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define HASH_STEP(hash, word)                        \
	do {                                         \
		hash = (hash ^ (word)) * 0x9e3779b1; \
		hash ^= hash >> 15;                  \
	} while (0)

/* Of whole words. `size` is a constant. */
static __always_inline __u32 hash_words(const void *record, __u32 size, __u32 hash)
{
	const __u32 *words = record;
	__u32 i;

#pragma unroll
	for (i = 0; i < size / sizeof(*words); i++)
		HASH_STEP(hash, words[i]);
	return hash;
}

#endif
