/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A position in packet data. Every bounds check of the parser is in cursor_take: it returns the next
 * `size` bytes and moves past them, or NULL where the data ends before. Nothing else compares with `end`.
 */
#ifndef WEIR_CURSOR_H
#define WEIR_CURSOR_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct cursor {
	void *position;
	void *end;
};

static __always_inline void *cursor_take(struct cursor *cursor, __u32 size)
{
	void *header = cursor->position;

	if (header + size > cursor->end)
		return NULL;
	cursor->position = header + size;
	return header;
}

#endif
