// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The way from a frontend to a backend, with the programs' own functions, but so slowly that the agent makes
 * several changes meanwhile: what it gives out again too early is then seen in use.
 */
#include <linux/bpf.h>

#include "frontend.h"

/* How often a random number is drawn between two steps; each takes some 10 ns. */
#define PAUSE 16384

/* At the beginning of the packet: the question, and the answer in its place. */
struct request {
	struct address address; /* of the frontend; then of the backend */
	__be16 port;
	__u8 protocol;
	__u8 side; /* enum side */
};

/* What comes back. */
enum outcome {
	OUTCOME_BACKEND,
	OUTCOME_NO_FRONTEND,
	OUTCOME_STALE,
	OUTCOME_EMPTY,
	OUTCOME_NO_BACKEND,
	OUTCOME_BROKEN, /* the request cannot be read, or the answer not written */
};

static __always_inline void pause(void)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < PAUSE; i++)
		bpf_get_prandom_u32();
}

static __always_inline int outcome_of(enum service_result result)
{
	return result == SERVICE_NONE ? OUTCOME_NO_FRONTEND : OUTCOME_STALE;
}

SEC("tc")
int slow(struct __sk_buff *context)
{
	enum algorithm algorithm;
	const struct slot_range *table;
	struct service_view view;
	enum service_result result;
	struct backend *backend;
	struct request request;

	if (bpf_skb_load_bytes(context, 0, &request, sizeof(request)))
		return OUTCOME_BROKEN;
	result = service_find(&request.address, request.port, request.protocol, false, &view);
	if (result != SERVICE_FOUND)
		return outcome_of(result);
	pause();
	table = service_table(view.service, request.side, &algorithm);
	if (!table->count)
		return OUTCOME_EMPTY;
	backend = backend_find(slot_read(table, bpf_get_prandom_u32() % table->count));
	if (!backend)
		return OUTCOME_NO_BACKEND;
	pause();
	if (bpf_skb_store_bytes(context, 0, &backend->address, sizeof(backend->address), 0))
		return OUTCOME_BROKEN;
	return OUTCOME_BACKEND;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
