// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/connect: a socket that is connected to a frontend is connected to a backend of it. From then on its
 * packets cost nothing.
 */
#include "socket.h"

/* Notes in the socket's storage what it was told, for getpeername and recvmsg. */
static __always_inline bool connect_note(struct bpf_sock_addr *context, const struct endpoint *frontend,
					 const struct service *service, const struct backend *backend, __u32 index)
{
	struct socket_peer *peer;

	if (!context->sk)
		return false;
	peer = bpf_sk_storage_get(&socket_peers, context->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer)
		return false;
	peer->frontend = frontend->address;
	peer->frontend_port = bpf_ntohs(frontend->port);
	peer->backend = backend->address;
	peer->backend_port = backend->port;
	peer->service = service->id;
	peer->index = index;
	peer->generation = backend->generation;
	return true;
}

/* A socket connected anew, to something that is no frontend, is to be told nothing of the old one. */
static __always_inline int connect_forget(struct bpf_sock_addr *context)
{
	if (context->sk)
		bpf_sk_storage_delete(&socket_peers, context->sk);
	return SOCKET_PROCEED;
}

/* Replaces the destination where it is a frontend; false: `verdict` is all there is to say. */
static __always_inline bool connect_translate(struct bpf_sock_addr *context, struct endpoint *endpoint, int *verdict)
{
	struct service_view view;
	struct backend *backend;
	int error = 0;
	__u32 index;

	*verdict = SOCKET_PROCEED;
	if (!socket_is_served(context))
		return false;
	if (socket_service(endpoint, &view) != SERVICE_FOUND) {
		*verdict = connect_forget(context);
		return false;
	}
	index = socket_pick(view.service, &error);
	backend = index ? backend_find(index) : NULL;
	if (!backend) {
		*verdict = socket_refuse(error ? error : ECONNREFUSED);
		return false;
	}
	if (!connect_note(context, endpoint, view.service, backend, index))
		return false; /* left to the packet edges */
	traffic_count_flow(view.service->id, index);
	count(socket_translated);
	endpoint_set_backend(endpoint, backend);
	return true;
}

SEC("cgroup/connect4")
int socket_connect4(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;
	int verdict;

	endpoint_read4(&endpoint, context);
	if (connect_translate(context, &endpoint, &verdict))
		endpoint_write4(context, &endpoint);
	return verdict;
}

SEC("cgroup/connect6")
int socket_connect6(struct bpf_sock_addr *context)
{
	struct endpoint endpoint;
	int verdict;

	endpoint_read6(&endpoint, context);
	if (connect_translate(context, &endpoint, &verdict))
		endpoint_write6(context, &endpoint);
	return verdict;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
