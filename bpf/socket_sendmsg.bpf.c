// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* cgroup/sendmsg: a datagram that an unconnected UDP socket sends to a frontend goes to a backend of it. */
#include "socket_flow.h"

/* Replaces the destination where it is a frontend; false: `verdict` is all there is to say. */
static __always_inline bool sendmsg_translate(struct bpf_sock_addr *context, struct endpoint *endpoint, int *verdict)
{
	__u64 cookie = bpf_get_socket_cookie(context);
	struct endpoint frontend = *endpoint;
	struct service_view view;
	struct backend *backend;
	int error = 0;
	__u32 index;

	*verdict = SOCKET_PROCEED;
	if (!socket_is_served(context))
		return false;
	if (socket_flow_backend(cookie, endpoint))
		return true;
	if (socket_service(endpoint, &view) != SERVICE_FOUND)
		return false;
	index = socket_pick(view.service, &error);
	backend = index ? backend_find(index) : NULL;
	if (!backend) {
		*verdict = socket_refuse(error ? error : ECONNREFUSED);
		return false;
	}
	endpoint_set_backend(endpoint, backend);
	if (!socket_flow_open(cookie, &frontend, endpoint, index, backend->generation)) {
		count(socket_left);
		return false;
	}
	traffic_count_flow(view.service->id, index);
	count(socket_translated);
	return true;
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
