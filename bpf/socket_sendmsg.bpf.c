// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* cgroup/sendmsg: a datagram that an unconnected UDP socket sends to a frontend goes to a backend of it. */
#include "access_socket.h"
#include "cluster_ip_socket.h"
#include "socket_flow.h"

/*
 * Opens an exchange with a backend that the socket knows under no other name; where there is none, with none:
 * the packet edges have ports of their own. False: `verdict` is all there is to say.
 */
static __always_inline bool sendmsg_open(struct bpf_sock_addr *context, struct endpoint *endpoint,
					 const struct service *service, int *verdict)
{
	__u32 start = bpf_get_prandom_u32(), index, i;
	struct endpoint frontend = *endpoint;
	struct backend *backend;
	struct address client;
	int error = 0;

	socket_affinity_client(context, endpoint, service, &client);
	for (i = 0; i < SOCKET_PICKS; i++) {
		index = socket_pick(service, &client, start, i, &error);
		backend = index ? backend_find(index) : NULL;
		if (!backend) {
			*verdict = socket_refuse(error ? error : ECONNREFUSED);
			return false;
		}
		endpoint_set_backend(endpoint, backend);
		if (!socket_flow_open(context, &frontend, endpoint, index, backend->generation))
			continue;
		socket_served(service, &client, index, backend->generation);
		return true;
	}
	socket_flow_leave(context, &frontend);
	count(socket_left);
	return false;
}

/* Replaces the destination where it is a frontend; false: `verdict` is all there is to say. */
static __always_inline bool sendmsg_translate(struct bpf_sock_addr *context, struct endpoint *endpoint, int *verdict)
{
	struct service_view view = {};

	*verdict = SOCKET_PROCEED;
	if (!socket_is_served(context))
		return false;
	switch (socket_flow_find(bpf_get_socket_cookie(context), endpoint)) {
	case EXCHANGE_BACKEND:
		return true;
	case EXCHANGE_LEFT:
		return false;
	case EXCHANGE_NONE:
		break;
	}
	switch (socket_service(context, endpoint, &view)) {
	case SERVICE_NONE:
		*verdict = socket_unclaimed(context, endpoint);
		return false;
	case SERVICE_STALE:
		return false;
	case SERVICE_FOUND:
		break;
	}
	if (socket_finds_local_listener(context, endpoint, &view) || socket_is_masqueraded(context, &view))
		return false;
	if (!socket_is_admitted(context, endpoint, &view, verdict))
		return false;
	return sendmsg_open(context, endpoint, view.service, verdict);
}

SEC("cgroup/sendmsg4")
int socket_sendmsg4(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;
	int verdict;

	endpoint_read4(&endpoint, context);
	if (sendmsg_translate(context, &endpoint, &verdict))
		endpoint_write4(context, &endpoint);
	return verdict;
}

SEC("cgroup/sendmsg6")
int socket_sendmsg6(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;
	int verdict;

	endpoint_read6(&endpoint, context);
	if (sendmsg_translate(context, &endpoint, &verdict))
		endpoint_write6(context, &endpoint);
	return verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
